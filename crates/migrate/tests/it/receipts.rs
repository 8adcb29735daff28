//! A receipt that outlives whoever commits, as a home keeps it.

use std::sync::Mutex;

use ferry_core::Result;
use ferry_migrate::{Receipt, Receipts};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Drawer {
    draft: Mutex<Option<Receipt>>,
    given_out: Mutex<Option<Receipt>>,
}

impl Receipts for Drawer {
    fn draw_up(&self, receipt: &Receipt) -> Result<()> {
        *self.draft.lock().unwrap() = Some(receipt.clone());
        Ok(())
    }

    fn give_out(&self, receipt: &Receipt) -> Result<()> {
        let drafted = self.draft.lock().unwrap().take().unwrap_or_else(|| receipt.clone());
        self.given_out.lock().unwrap().get_or_insert(drafted);
        Ok(())
    }
}

impl Drawer {
    /// The commit is over, however often it died: there is a receipt, and it tells what was verified.
    pub(crate) fn check(&self, seed: u64) {
        let given_out = self.given_out.lock().unwrap();
        let receipt =
            given_out.as_ref().unwrap_or_else(|| panic!("seed {seed}: committed without a receipt"));
        assert!(receipt.verification.is_some(), "seed {seed}: the receipt tells of no verification");
        assert!(self.draft.lock().unwrap().is_none(), "seed {seed}: a draft is left");
    }
}
