//! What is distributed between peers, what is only passed on, and what is refused.

use regex::Regex;
use serde::{Deserialize, Serialize};

/// One rule. A key that is left out fits everything; the first rule that fits decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuleConfig {
    /// The registry, or the host of any other URL, as `HOST[:PORT]`: `*` stands for any letters.
    pub registry: Option<String>,
    /// The repository in a registry: `*` stands for any letters but `/`, `**` for any.
    pub repository: Option<String>,
    /// A regular expression that is found somewhere in the URL at the origin.
    pub url: Option<String>,
    /// What is done.
    pub action: Action,
    /// Query parameters that do not tell one file from another, as signatures and their dates.
    pub ignored_query: Vec<String>,
}

/// What is done with a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Contents come from peers.
    #[default]
    P2p,
    /// The request is passed on to its origin.
    Direct,
    /// The request is refused.
    Deny,
}

/// What a rule is asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The registry or host, `HOST[:PORT]`.
    pub(crate) registry: &'a str,
    /// The repository, for requests of the distribution specification.
    pub(crate) repository: Option<&'a str>,
    /// The URL at the origin.
    pub(crate) url: &'a str,
}

/// A rule that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("proxy.rules, number {number}: {reason}")]
pub struct RuleError {
    /// The rule, counted from 1.
    pub number: usize,
    /// What is wrong.
    pub reason: String,
}

/// Rules in their order, ready for use.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    registry: Option<Regex>,
    repository: Option<Regex>,
    url: Option<Regex>,
    action: Action,
    ignored_query: Vec<String>,
}

/// What the rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision<'a> {
    pub(crate) action: Action,
    pub(crate) ignored_query: &'a [String],
}

impl Rules {
    pub(crate) fn new(config: &[RuleConfig]) -> Result<Self, RuleError> {
        let rules = config.iter().zip(1..).map(|(rule, number)| {
            Rule::new(rule).map_err(|error| RuleError { number, reason: error.to_string() })
        });
        Ok(Self { rules: rules.collect::<Result<_, _>>()? })
    }

    /// What the first rule says that fits; `None` if none does.
    pub(crate) fn decide(&self, subject: Subject<'_>) -> Option<Decision<'_>> {
        let rule = self.rules.iter().find(|rule| rule.fits(subject))?;
        Some(Decision { action: rule.action, ignored_query: &rule.ignored_query })
    }
}

impl Rule {
    fn new(config: &RuleConfig) -> Result<Self, regex::Error> {
        let glob = |pattern: &Option<String>| pattern.as_deref().map(glob).transpose();
        Ok(Self {
            registry: glob(&config.registry)?,
            repository: glob(&config.repository)?,
            url: config.url.as_deref().map(Regex::new).transpose()?,
            action: config.action,
            ignored_query: config.ignored_query.clone(),
        })
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        let repository = match (&self.repository, subject.repository) {
            (None, _) => true,
            (Some(pattern), Some(repository)) => pattern.is_match(repository),
            (Some(_), None) => false,
        };
        repository
            && self.registry.as_ref().is_none_or(|pattern| pattern.is_match(subject.registry))
            && self.url.as_ref().is_none_or(|pattern| pattern.is_match(subject.url))
    }
}

/// A pattern with `*` (no `/`) and `**` (anything) for the whole text; case does not matter, as in names of hosts.
pub(crate) fn glob(pattern: &str) -> Result<Regex, regex::Error> {
    let parts = pattern.split("**").map(|part| {
        let words: Vec<String> = part.split('*').map(regex::escape).collect();
        words.join("[^/]*")
    });
    Regex::new(&format!("^(?i:{})$", parts.collect::<Vec<_>>().join(".*")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        rules: Vec<RuleConfig>,
    }

    fn rules(toml: &str) -> Rules {
        Rules::new(&darter_service::config::parse::<File>(toml, "test").unwrap().rules).unwrap()
    }

    fn of(registry: &'static str, repository: Option<&'static str>) -> Subject<'static> {
        Subject { registry, repository, url: "https://h/models/a.bin?sig=1" }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let rules = rules(
            r#"rules = [
                { registry = "*.internal", repository = "secret/**", action = "deny" },
                { registry = "*.internal", repository = "*", action = "direct" },
                { registry = "*.internal" },
                { url = '^https://h/models/.*\.bin', ignored_query = ["sig"] },
            ]"#,
        );
        let action = |subject| rules.decide(subject).map(|decision| decision.action);
        assert_eq!(action(of("R.internal", Some("secret/a/b"))), Some(Action::Deny));
        assert_eq!(action(of("r.internal", Some("a"))), Some(Action::Direct));
        assert_eq!(action(of("r.internal", Some("a/b"))), Some(Action::P2p));
        let file = rules.decide(of("h", None)).unwrap();
        assert_eq!((file.action, file.ignored_query), (Action::P2p, &["sig".to_owned()][..]));
        assert_eq!(action(Subject { url: "https://h/other", ..of("h", None) }), None);
        assert_eq!(action(Subject { url: "x", ..of("r.internal.evil.io", Some("a")) }), None);
    }

    #[test]
    fn a_rule_that_makes_no_sense_is_named() {
        let bad = RuleConfig { url: Some("(".to_owned()), ..RuleConfig::default() };
        let error = Rules::new(&[RuleConfig::default(), bad]).unwrap_err().to_string();
        assert!(error.starts_with("proxy.rules, number 2: "), "{error}");
    }
}
