//! Simulates a full quota (EDQUOT) for the files of one database. A test builds this library and preloads it before
//! libc. It is not a module of the tests; `sqlite/quota/mod.rs` builds and uses it.

use std::ffi::{c_int, c_long, c_void};

const EDQUOT: c_int = 122;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
}

#[cfg(target_arch = "x86_64")]
const WRITE: (c_long, c_long) = (1, 18);
#[cfg(target_arch = "aarch64")]
const WRITE: (c_long, c_long) = (64, 68);

/// Whether the quota is used up and this file counts towards it.
fn is_over(fd: c_int) -> bool {
    let (Some(marker), Ok(counts)) =
        (std::env::var_os("EVENTD_TEST_QUOTA_IS_FULL"), std::env::var("EVENTD_TEST_QUOTA_COUNTS"))
    else {
        return false;
    };
    std::path::Path::new(&marker).exists()
        && std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|path| path.to_string_lossy().contains(&counts))
}

fn refuse() -> isize {
    unsafe { *__errno_location() = EDQUOT };
    -1
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize {
    if is_over(fd) { refuse() } else { unsafe { syscall(WRITE.0, fd, bytes, len) as isize } }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite(fd: c_int, bytes: *const c_void, len: usize, at: i64) -> isize {
    if is_over(fd) { refuse() } else { unsafe { syscall(WRITE.1, fd, bytes, len, at) as isize } }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(fd: c_int, bytes: *const c_void, len: usize, at: i64) -> isize {
    unsafe { pwrite(fd, bytes, len, at) }
}
