//! The `WWW-Authenticate` header (RFC 9110, section 11.6.1).

/// One way to authenticate that an origin offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    /// The scheme in lower case, as `bearer`.
    pub(super) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter's value; names do not depend on case.
    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The challenges in one header value; reading stops at the first thing that makes no sense.
pub(super) fn parse(value: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = vec![];
    let mut rest = value.trim_start_matches(separator);
    while let Some((token, after)) = split_token(rest) {
        rest = match (split_value(after), challenges.last_mut()) {
            (Some((value, after)), Some(challenge)) => {
                challenge.params.push((token.to_owned(), value));
                after
            }
            (Some(_), None) => break,
            (None, _) => {
                challenges.push(Challenge { scheme: token.to_ascii_lowercase(), params: vec![] });
                after
            }
        };
        rest = rest.trim_start_matches(separator);
    }
    challenges
}

fn separator(c: char) -> bool {
    matches!(c, ' ' | '\t' | ',')
}

/// A `token` of RFC 9110, section 5.6.2, at the start of the text, and what follows it.
fn split_token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// `= token` or `= "quoted"` at the start of the text, and what follows it.
fn split_value(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start().strip_prefix('=')?.trim_start();
    match text.strip_prefix('"') {
        Some(quoted) => unquote(quoted),
        None => split_token(text).map(|(token, rest)| (token.to_owned(), rest)),
    }
}

/// Reads a quoted string up to its closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_registries_send() {
        let docker = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull,push""#;
        let challenges = parse(docker);
        assert_eq!(challenges.len(), 1);
        assert_eq!(challenges[0].scheme, "bearer");
        assert_eq!(challenges[0].param("Realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].param("scope"), Some("repository:library/a:pull,push"));
        assert_eq!(challenges[0].param("error"), None);
    }

    #[test]
    fn reads_several_challenges_and_odd_spacing() {
        let challenges = parse(r#"Negotiate, Basic realm = "a \"b\", c" , charset=UTF-8,  BEARER realm=x"#);
        let schemes: Vec<_> = challenges.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(challenges[1].param("realm"), Some(r#"a "b", c"#));
        assert_eq!(challenges[1].param("charset"), Some("UTF-8"));
        assert_eq!(challenges[2].param("realm"), Some("x"));
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(value in "\\PC{0,80}") {
            parse(&value);
        }

        #[test]
        fn near_rubbish_never_panics(value in "[Bb=\",\\\\ a-c\t]{0,40}") {
            parse(&value);
        }

        #[test]
        fn reads_what_a_server_writes(realm in "[ -~]{0,40}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let challenges = parse(&format!("Bearer realm=\"{quoted}\",service=s"));
            prop_assert_eq!(challenges[0].param("realm"), Some(realm.as_str()));
            prop_assert_eq!(challenges[0].param("service"), Some("s"));
        }
    }
}
