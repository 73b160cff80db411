mod back_ends;

use e2e::runner::Test;

pub fn all() -> Vec<Test> {
    [back_ends::tests()].into_iter().flatten().collect()
}
