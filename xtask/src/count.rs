//! Counts tests in what the runners print.

/// Tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Passed, without those that said they were skipped.
    pub(crate) passed: u64,
    /// Failed.
    pub(crate) failed: u64,
    /// Skipped: ignored, or said so.
    pub(crate) skipped: u64,
}

impl Count {
    /// Both together.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

/// The number before `word` in a line, `0` where there is none.
fn number_before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line.split([' ', ',', ';', ':']).filter(|w| !w.is_empty()).collect();
    let at = words.iter().position(|w| *w == word);
    at.and_then(|i| i.checked_sub(1)).and_then(|i| words[i].parse().ok()).unwrap_or_default()
}

/// Reasons of tests that said they were skipped, each once.
pub(crate) fn skips(lines: &[String]) -> Vec<String> {
    let mut found: Vec<String> =
        lines.iter().filter_map(|l| l.find("SKIPPED ").map(|at| l[at..].trim_end().to_owned())).collect();
    found.sort();
    found.dedup();
    found
}

/// Counts in the output of nextest or of cargo test. A test that passed and said that it was skipped is skipped.
pub(crate) fn count(lines: &[String]) -> Count {
    let mut total = Count::default();
    // Under nextest each test is a program of its own whose `test result:` is shown too: only the summary counts then.
    let of_nextest = lines.iter().any(|l| l.trim_start().starts_with("Summary "));
    for line in lines.iter().map(|l| l.trim_start()) {
        if line.starts_with(if of_nextest { "Summary " } else { "test result:" }) {
            let failed = number_before(line, "failed") + number_before(line, "timed");
            total = total.and(Count {
                passed: number_before(line, "passed"),
                failed,
                skipped: number_before(line, "skipped") + number_before(line, "ignored"),
            });
        }
    }
    let said = u64::try_from(skips(lines).len()).unwrap_or(u64::MAX);
    Count { passed: total.passed.saturating_sub(said), skipped: total.skipped + said, ..total }
}

#[cfg(test)]
mod tests {
    use super::{Count, count, skips};

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_each_test_says_under_nextest_is_not_counted_again() {
        let output = lines(
            "        PASS [   0.007s] (1/2) ferry a\n    test result: ok. 1 passed; 0 failed; 0 ignored;\n\
             PASS [   0.007s] (2/2) ferry b\n    test result: ok. 1 passed; 0 failed; 0 ignored;\n\
             Summary [  12.3s] 2 tests run: 2 passed, 0 skipped\n",
        );
        assert_eq!(count(&output), Count { passed: 2, failed: 0, skipped: 0 });
    }

    #[test]
    fn the_summary_of_nextest_is_understood() {
        let output = lines(
            "        PASS [   0.007s] ferry cli::args\n    SKIPPED qemu: qemu-img is not installed\n\
             ------------\n     Summary [  12.3s] 301 tests run: 299 passed (2 slow), 2 failed, 3 skipped\n",
        );
        assert_eq!(count(&output), Count { passed: 298, failed: 2, skipped: 4 });
        assert_eq!(skips(&output), ["SKIPPED qemu: qemu-img is not installed"]);
    }

    #[test]
    fn the_results_of_cargo_test_are_added_up() {
        let output = lines(
            "test result: ok. 29 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
             test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n",
        );
        assert_eq!(count(&output), Count { passed: 32, failed: 2, skipped: 1 });
    }

    #[test]
    fn nothing_printed_is_nothing_proved() {
        assert_eq!(count(&[]), Count::default());
    }
}
