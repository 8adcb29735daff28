//! What exports count, as samples of metrics.

use ferry_serve::traffic::{Counts, SORTS, Sort};

use super::Exporter;

/// Takes a family of metrics: name, kind, help, and `(labels, value)` of each sample.
type Take<'a> = &'a mut dyn FnMut(&str, &str, &str, &[(String, String)]);

/// What a sample says of the counts.
type Value = fn(&Counts) -> String;

/// What a sort of request is called in a label.
fn word(sort: Sort) -> &'static str {
    match sort {
        Sort::Read => "read",
        Sort::Write => "write",
        Sort::Flush => "flush",
        Sort::Zero => "zero",
        Sort::Other => "other",
    }
}

/// A text as it stands between the quotes of a label.
fn quoted(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Exporter {
    /// Gives all that is counted to `take`.
    pub(crate) fn count(&self, take: Take<'_>) {
        let exports = self.exports.list();
        let clients = exports.iter().map(|export| {
            (format!("{{export=\"{}\"}}", quoted(export.name())), export.clients().to_string())
        });
        take("ferry_nbd_clients", "gauge", "NBD clients.", &clients.collect::<Vec<_>>());
        let each = |value: Value| {
            let mut samples = Vec::new();
            for export in &exports {
                for sort in SORTS {
                    let labels = format!("{{export=\"{}\",sort=\"{}\"}}", quoted(export.name()), word(sort));
                    samples.push((labels, value(&export.traffic().counts(sort))));
                }
            }
            samples
        };
        let counted: [(&str, &str, Value); 4] = [
            ("ferry_nbd_requests_total", "NBD requests.", |c| c.requests.to_string()),
            ("ferry_nbd_errors_total", "NBD requests answered with an error.", |c| c.errors.to_string()),
            ("ferry_nbd_bytes_total", "Bytes moved by NBD requests.", |c| c.bytes.to_string()),
            ("ferry_nbd_busy_seconds_total", "Time NBD requests took.", |c| {
                format!("{}.{:06}", c.microseconds / 1_000_000, c.microseconds % 1_000_000)
            }),
        ];
        for (name, help, value) in counted {
            take(name, "counter", help, &each(value));
        }
        let refusals = self.server.refusals();
        let reasons =
            [("too_many", refusals.too_many), ("handshake", refusals.handshake), ("broken", refusals.broken)];
        let refused = reasons.map(|(reason, n)| (format!("{{reason=\"{reason}\"}}"), n.to_string()));
        take("ferry_nbd_refused_total", "counter", "NBD clients turned away.", &refused);
        let held = [(String::new(), self.server.bytes_in_flight().to_string())];
        take("ferry_nbd_in_flight_bytes", "gauge", "Memory that NBD requests hold.", &held);
    }
}
