use crate::client::Client;
use crate::error::Error;
use crate::types::{Operation, Outcome};
pub(crate) async fn run(_: &Client, _: &[Operation]) -> Result<Vec<Result<Outcome, Error>>, Error> {
    todo!()
}
