//! The HTTP client of all calls within a deployment: to other members, to this node itself, to metadata of the machine, to a
//! collector beside the node.

use reqwest::ClientBuilder;

/// A client to be built with timeouts. It uses no proxy, whatever `http_proxy` or `all_proxy` say: a proxy leads out of the
/// deployment, and the members are not there.
pub fn builder() -> ClientBuilder {
    ClientBuilder::new().no_proxy()
}

/// The same for a thread without a runtime.
pub fn blocking_builder() -> reqwest::blocking::ClientBuilder {
    reqwest::blocking::ClientBuilder::new().no_proxy()
}
