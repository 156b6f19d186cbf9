//! Bad nodes: hosts that answer far too slowly or send wrong leaves are ejected for a while.

use std::{collections::BTreeSet, time::Duration};

use super::{
    history::{Normal, Served},
    ids::HostKey,
    message::ParentReport,
    time::Time,
};

/// How long the first ejection lasts; each further one lasts twice as long as the one before.
const FIRST_EJECTION: Duration = Duration::from_secs(30);
/// No ejection lasts longer.
const LONGEST_EJECTION: Duration = Duration::from_secs(3600);
/// So many slow answers in a row, seen by at least [`WITNESSES`] children, are too many.
const SLOW_ANSWERS: usize = 3;
/// Reports of so many different children are believed; one alone may itself be the problem.
pub(super) const WITNESSES: usize = 2;
/// A response time needs so many siblings to be compared with.
const SIBLINGS: usize = 3;

/// What is held against a host.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    ejected_until: Time,
    ejections: u32,
    /// Children that saw it answer far too slowly since it last did not.
    slow: Vec<HostKey>,
    /// Children that got a wrong leaf.
    wrong: Vec<HostKey>,
}

/// An ejection that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) reason: String,
}

impl Conduct {
    pub(super) fn is_ejected(&self, now: Time) -> bool {
        now < self.ejected_until
    }

    /// Whether nothing was ever held against it.
    pub(super) fn is_clean(&self) -> bool {
        self.ejections == 0 && self.wrong.is_empty() && self.slow.is_empty()
    }

    /// Ejects the host; returns for how long. What led to it is forgotten, so that the host starts anew afterwards.
    pub(super) fn eject(&mut self, now: Time) -> Duration {
        let doubled = FIRST_EJECTION.saturating_mul(2u32.saturating_pow(self.ejections));
        let duration = doubled.min(LONGEST_EJECTION);
        self.ejections = self.ejections.saturating_add(1);
        self.ejected_until = now.after(duration);
        self.slow.clear();
        self.wrong.clear();
        duration
    }

    /// Takes up that a child got a leaf whose digest is wrong.
    pub(super) fn wrong_leaf(&mut self, child: HostKey) -> Option<Verdict> {
        if !self.wrong.contains(&child) {
            self.wrong.push(child);
        }
        let reason = format!("wrong leaves reported by {} children", self.wrong.len());
        (self.wrong.len() >= WITNESSES).then_some(Verdict { reason })
    }

    /// Takes up a child's report, `siblings` being how the child's other parents have served.
    pub(super) fn served(
        &mut self,
        served: &mut Served,
        child: HostKey,
        report: &ParentReport,
        siblings: &[Normal],
    ) -> Option<Verdict> {
        if report.leaves == 0 {
            return None;
        }
        served.add_bandwidth(report.bytes, report.busy);
        let response = response(report);
        if !is_far_too_slow(&served.response, siblings, response) {
            self.slow.clear();
            served.response.add(response);
            return None;
        }
        // One child that goes on complaining needs no more room than this.
        self.slow.truncate(SLOW_ANSWERS - 1);
        self.slow.push(child);
        self.slow_verdict(served, response)
    }

    fn slow_verdict(&self, served: &mut Served, response: f64) -> Option<Verdict> {
        let witnesses: BTreeSet<_> = self.slow.iter().collect();
        if self.slow.len() < SLOW_ANSWERS || witnesses.len() < WITNESSES {
            return None;
        }
        let usual = served.response.mean().unwrap_or(0.0);
        served.response = Normal::default();
        let reason = format!("answers in {:.1} ms, usually {:.1} ms", response * 1e3, usual * 1e3);
        Some(Verdict { reason })
    }
}

/// Whether a report is beyond the host's own history, so that its siblings' decide.
pub(super) fn is_suspect(served: &Served, report: &ParentReport) -> bool {
    report.leaves > 0 && served.response.is_telling() && served.response.is_far_above(response(report))
}

/// Seconds that a leaf took.
fn response(report: &ParentReport) -> f64 {
    report.busy.as_secs_f64() / f64::from(report.leaves)
}

/// Beyond six standard deviations of the host's own history and of its siblings'.
fn is_far_too_slow(own: &Normal, siblings: &[Normal], response: f64) -> bool {
    let telling: Vec<_> = siblings.iter().copied().filter(Normal::is_telling).collect();
    let comparable = own.is_telling() && telling.len() >= SIBLINGS;
    comparable && own.is_far_above(response) && Normal::pooled(&telling).is_far_above(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::HostId;

    fn report(millis: u64) -> ParentReport {
        ParentReport {
            host: HostId::parse("parent").unwrap(),
            bytes: 1 << 20,
            busy: Duration::from_millis(millis),
            leaves: 1,
            fault: None,
            reason: String::new(),
        }
    }

    /// Siblings that answer in `millis` milliseconds, more or less.
    fn siblings(millis: u64) -> Vec<Normal> {
        let mut normal = Normal::default();
        for n in 0..50 {
            normal.add((millis as f64 + f64::from(n % 3)) / 1e3);
        }
        vec![normal; 4]
    }

    struct Parent(Conduct, Served);

    impl Parent {
        /// One that has answered in about 10 ms so far.
        fn steady() -> Self {
            let mut parent = Self(Conduct::default(), Served::default());
            for n in 0..50 {
                assert_eq!(parent.answers(1, 9 + n % 3, 10), None);
            }
            parent
        }

        fn answers(&mut self, child: u64, millis: u64, siblings_millis: u64) -> Option<Verdict> {
            self.0.served(&mut self.1, HostKey(child), &report(millis), &siblings(siblings_millis))
        }
    }

    #[test]
    fn far_slower_than_ever_and_than_its_siblings_is_bad() {
        let mut parent = Parent::steady();
        assert_eq!(parent.answers(1, 200, 10), None);
        assert_eq!(parent.answers(2, 200, 10), None);
        assert!(parent.answers(1, 200, 10).is_some());
    }

    #[test]
    fn slow_like_everybody_is_not_bad() {
        let mut parent = Parent::steady();
        for n in 0..10 {
            assert_eq!(parent.answers(n, 200, 200), None);
        }
    }

    #[test]
    fn one_child_alone_is_not_believed() {
        let mut parent = Parent::steady();
        for _ in 0..10 {
            assert_eq!(parent.answers(1, 200, 10), None);
        }
        let mut conduct = Conduct::default();
        assert_eq!(conduct.wrong_leaf(HostKey(1)), None);
        assert_eq!(conduct.wrong_leaf(HostKey(1)), None);
        assert!(conduct.wrong_leaf(HostKey(2)).is_some());
    }

    #[test]
    fn a_good_answer_in_between_is_forgiving() {
        let mut parent = Parent::steady();
        for n in 0..10 {
            assert_eq!(parent.answers(n, 200, 10), None);
            assert_eq!(parent.answers(n + 1, 200, 10), None);
            assert_eq!(parent.answers(n, 10, 10), None);
        }
    }

    #[test]
    fn ejections_end_and_grow() {
        let mut conduct = Conduct::default();
        let now = Time::from_millis(1000);
        let first = conduct.eject(now);
        assert!(conduct.is_ejected(now));
        assert!(!conduct.is_ejected(now.after(first)) && !conduct.is_clean());
        assert_eq!(conduct.eject(now), first * 2);
        for _ in 0..50 {
            assert!(conduct.eject(now) <= LONGEST_EJECTION);
        }
    }
}
