use e2e::runner::Test;

pub fn tests() -> Vec<Test> {
    Vec::new()
}
