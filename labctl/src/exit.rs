//! Exit codes. `exec` returns the command's own instead.

/// Done.
pub const OK: u8 = 0;
/// A check failed.
pub const CHECK: u8 = 1;
/// Wrong usage or topology; nothing was started.
pub const USAGE: u8 = 2;
/// The machine lacks something (`labctl doctor` says what); nothing was started.
pub const MACHINE: u8 = 3;
/// Deploy failed and was undone, or the agent could not do what it was asked to.
pub const DEPLOY: u8 = 4;

/// The exit code of a program that ended with `code`, or by `signal` (0: none), as a shell gives it.
pub fn of_program(code: i32, signal: i32) -> u8 {
    let code = if signal != 0 { 128 + signal } else { code };
    u8::try_from(code & 0xff).expect("masked to an octet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_exit_code_is_that_of_a_shell() {
        assert_eq!((of_program(7, 0), of_program(0, 9), of_program(256, 0), of_program(-1, 0)), (7, 137, 0, 255));
    }
}
