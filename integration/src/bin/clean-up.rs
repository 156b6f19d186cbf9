//! `make clean-up`: removes what tests and demos have left that were killed before they could do so themselves.

use anyhow::Result;

fn main() -> Result<()> {
    darter_integration::lab::remove_orphans()
}
