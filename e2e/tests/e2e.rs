//! The end-to-end suites: a file each in `suites/`, run by `e2e::runner`.

mod suites;

fn main() -> std::process::ExitCode {
    e2e::runner::main(suites::all())
}
