//! The filters of `List`: containerd's filter language (containerd, `pkg/filters`, package documentation).
//!
//! A filter is a list of selectors with `,` between them, all of which must hold. A selector is a field (`name`, `kind`,
//! `parent`, `labels.key`, `labels."any key"`) alone, which asks for its presence, or with `==`, `!=` or `~=` (a
//! regular expression) and a value; values stand in quotes (`"`, and for `~=` also `/` or `|`) or up to the next
//! space or comma.

use regex::{Regex, RegexBuilder};

use super::{Record, SnapshotError};

/// Most bytes that a compiled regular expression may take.
const REGEX_LEN: usize = 1 << 20;

/// Filters of one request; a snapshot passes if it passes any of them, or if there are none.
#[derive(Debug, Default)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Kind,
    Parent,
    Label(String),
    /// Fields that snapshots do not have are never present, as in containerd.
    Unknown,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses the filters of a request.
    pub(crate) fn parse(filters: &[String]) -> Result<Self, SnapshotError> {
        let parse = |text: &String| {
            let refuse = |why| SnapshotError::Invalid(format!("filter {text:?}: {why}"));
            Scanner { rest: text }.filter().map_err(refuse)
        };
        Ok(Self(filters.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether a snapshot passes.
    pub(crate) fn pass(&self, name: &str, record: &Record) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.holds(name, record)))
    }
}

impl Selector {
    fn holds(&self, name: &str, record: &Record) -> bool {
        let value = match &self.field {
            Field::Name => Some(name),
            Field::Kind => Some(record.kind.name()),
            Field::Parent => Some(record.parent.as_str()),
            Field::Label(key) => record.labels.get(key).map(String::as_str),
            Field::Unknown => None,
        };
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value == Some(wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(regex) => regex.is_match(value.unwrap_or_default()),
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    fn filter(mut self) -> Result<Vec<Selector>, String> {
        let mut selectors = Vec::new();
        self.skip_spaces();
        while !self.rest.is_empty() {
            selectors.push(self.selector()?);
            self.skip_spaces();
            if !self.rest.is_empty() && !self.take(",") {
                return Err(format!("a comma is missing before {:?}", self.rest));
            }
            self.skip_spaces();
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, String> {
        let mut path = vec![self.name()?];
        while self.take(".") {
            path.push(self.name()?);
        }
        let field = match path.split_first() {
            Some((first, [])) if first == "name" => Field::Name,
            Some((first, [])) if first == "kind" => Field::Kind,
            Some((first, [])) if first == "parent" => Field::Parent,
            Some((first, rest)) if first == "labels" && !rest.is_empty() => Field::Label(rest.join(".")),
            _ => Field::Unknown,
        };
        self.skip_spaces();
        let test = if self.take("==") {
            Test::Equal(self.value(&['"'])?)
        } else if self.take("!=") {
            Test::NotEqual(self.value(&['"'])?)
        } else if self.take("~=") {
            let pattern = self.value(&['"', '/', '|'])?;
            let regex = RegexBuilder::new(&pattern).size_limit(REGEX_LEN).build();
            Test::Matches(regex.map_err(|err| err.to_string())?)
        } else if self.rest.is_empty() || self.rest.starts_with(',') {
            Test::Present
        } else {
            return Err(format!("expected ==, != or ~= at {:?}", self.rest));
        };
        Ok(Selector { field, test })
    }

    fn name(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted('"');
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(format!("expected a field at {:?}", self.rest));
        }
        Ok(self.advance(end).to_owned())
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, String> {
        self.skip_spaces();
        if let Some(quote) = self.rest.chars().next().filter(|c| quotes.contains(c)) {
            return self.quoted(quote);
        }
        let end = self.rest.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(self.rest.len());
        if end == 0 {
            return Err("a value is missing".into());
        }
        Ok(self.advance(end).to_owned())
    }

    /// A quoted string. In `"` Go's escapes hold (Go specification, "String literals"); other quotes only escape
    /// themselves, so that regular expressions keep their backslashes.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.advance(at + c.len_utf8());
                return Ok(out);
            }
            if c != '\\' {
                out.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            if quote != '"' {
                if escaped != quote {
                    out.push('\\');
                }
                out.push(escaped);
                continue;
            }
            let digits = match escaped {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            let hex: String = chars.by_ref().take(digits).map(|(_, digit)| digit).collect();
            out.push(unescape(escaped, &hex).ok_or_else(|| format!("\\{escaped}{hex} is no escape"))?);
        }
        Err(format!("the closing {quote} is missing"))
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn advance(&mut self, len: usize) -> &str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }
}

fn unescape(escaped: char, hex: &str) -> Option<char> {
    Some(match escaped {
        'a' => '\x07',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\x0b',
        '\\' | '"' | '\'' => escaped,
        'x' | 'u' | 'U' => char::from_u32(u32::from_str_radix(hex, 16).ok()?)?,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::snapshots::{Kind, Usage};

    fn passes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|&filter| filter.to_owned()).collect();
        let labels = [("containerd.io/snapshot.ref", "sha256:ab"), ("tier", "gold"), ("empty", "")];
        let record = Record {
            id: 1,
            parent: "k8s.io/3/sha256:cd".into(),
            kind: Kind::Committed,
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            usage: Usage::default(),
            lazy: None,
        };
        Filters::parse(&filters).unwrap().pass("top", &record)
    }

    #[test]
    fn what_containerd_asks_for_a_lazy_layer() {
        let parent = r#"parent=="k8s.io/3/sha256:cd""#;
        assert!(passes(&[&format!(r#"labels."containerd.io/snapshot.ref"==sha256:ab,{parent}"#)]));
        assert!(!passes(&[&format!(r#"labels."containerd.io/snapshot.ref"==sha256:ac,{parent}"#)]));
    }

    #[test]
    fn every_operator() {
        for (filter, expected) in [
            ("", true),
            ("name", true),
            ("name==top", true),
            ("name == top , kind == committed", true),
            ("name!=top", false),
            ("name==top,kind==active", false),
            ("kind==committed", true),
            ("labels.tier", true),
            ("labels.none", false),
            ("labels.empty", true),
            ("labels.none!=x", true),
            ("labels.tier~=^go", true),
            ("labels.tier~=/^si\\w+/", false),
            ("labels.tier~=|l.$|", true),
            (r#""labels"."tier"=="gold""#, true),
            (r#"name=="t\x6fp""#, true),
            ("nonsense==x", false),
            ("nonsense!=x", true),
        ] {
            assert_eq!(passes(&[filter]), expected, "{filter}");
        }
        assert!(passes(&["name==other", "labels.tier==gold"]));
        assert!(passes(&[]));
    }

    #[test]
    fn refuses_what_is_no_filter() {
        for bad in [
            "==x",
            "name==",
            "name=x",
            "name==a b",
            "labels.",
            "name==\"x",
            "name~=(",
            "name==\"\\q\"",
            ",",
            "a,,b",
        ] {
            assert!(Filters::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(filter in "[a-z.,\"/|=~! \\\\xü]{0,40}") {
            drop(Filters::parse(&[filter]));
        }

        #[test]
        fn quoting_keeps_any_label(value in "[^\\\\\"]{0,20}") {
            let quoted = format!("name==\"{value}\"");
            let filters = Filters::parse(&[quoted]).unwrap();
            let record = Record {
                id: 1, parent: String::new(), kind: Kind::View, labels: Default::default(), usage: Usage::default(),
                created: SystemTime::UNIX_EPOCH, updated: SystemTime::UNIX_EPOCH, lazy: None,
            };
            prop_assert!(filters.pass(&value, &record));
        }
    }
}
