//! For each mistake a short history that ends well, and breaks a promise if the mistake is made.

mod attempts;
mod mistakes;
mod script;
