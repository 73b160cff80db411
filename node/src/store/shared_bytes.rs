//! Bytes that several hold together, behind a pointer as small as any: one piece of memory with a count of its holders and the length in front,
//! of 32 bits each. The cache holds millions of these: `Arc<[u8]>` has 16 bytes before the others and a pointer of 16, crates with thin
//! pointers the same 16. The unsafe code that this takes is all here.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::Deref;
use std::process::abort;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering};

/// Half of what the count has room for: threads that are about to abort may pass it meanwhile.
const MOST_HOLDERS: u32 = u32::MAX / 2;

/// Immutable bytes, fewer than 4 GiB. A clone is another holder of the same.
pub(super) struct SharedBytes(NonNull<Head>);

/// What lies before the bytes.
#[repr(C)]
struct Head {
    holders: AtomicU32,
    length: u32,
}

impl SharedBytes {
    /// Bytes of memory that each takes beside its own.
    pub const HEAD: usize = size_of::<Head>();

    /// A copy of these bytes; `None` if there are 4 GiB of them or more.
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        let length = u32::try_from(bytes.len()).ok()?;
        let layout = Self::layout(bytes.len())?;
        // SAFETY: the layout is that of a head at least, so its size is not zero.
        let memory = unsafe { alloc(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let head = memory.cast::<Head>();
        // SAFETY: the memory is ours alone, aligned for a head, and has room for one and so many bytes after it.
        unsafe {
            head.write(Head { holders: AtomicU32::new(1), length });
            head.add(1).cast::<u8>().copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
        }
        Some(Self(head))
    }

    /// Of the memory for so many bytes; `None` if there is no such piece of memory on this machine.
    fn layout(length: usize) -> Option<Layout> {
        Layout::from_size_align(Self::HEAD.checked_add(length)?, align_of::<Head>()).ok()
    }

    fn head(&self) -> &Head {
        // SAFETY: a head was written there, and the memory stays as long as there is a holder. The length never changes.
        unsafe { self.0.as_ref() }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let length = self.head().length as usize;
        // SAFETY: so many bytes were written after the head, of the same piece of memory; nothing changes them while there is a holder.
        unsafe { slice::from_raw_parts(self.0.add(1).cast::<u8>().as_ptr(), length) }
    }
}

impl Clone for SharedBytes {
    fn clone(&self) -> Self {
        // Nothing is read by way of it; what hands the new holder to another thread orders the rest.
        let before = self.head().holders.fetch_add(1, Ordering::Relaxed);
        // A count that begins anew would free what others hold. As the standard library's `Arc`, which knows no way back either.
        if before > MOST_HOLDERS {
            abort();
        }
        Self(self.0)
    }
}

impl Drop for SharedBytes {
    fn drop(&mut self) {
        // Each holder's reads come before its release; the last one acquires them all, so none comes after the memory is free.
        if self.head().holders.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        self.head().holders.load(Ordering::Acquire);
        // There was one when the memory was taken.
        let Some(layout) = Self::layout(self.len()) else { abort() };
        // SAFETY: taken with the same layout, and there is no holder any more.
        unsafe { dealloc(self.0.cast().as_ptr(), layout) }
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

// SAFETY: the bytes never change, and the count is atomic: any thread may read them, and any may be the last that holds them.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;
    use std::process::Command;
    use std::sync::mpsc;

    use super::*;

    fn shared(bytes: &[u8]) -> SharedBytes {
        SharedBytes::copy_of(bytes).expect("there are few")
    }

    #[test]
    fn they_are_the_bytes_that_were_copied() {
        for length in [0, 1, 3, 4, 7, 8, 9, 148, 5_000] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let held = shared(&bytes);
            assert_eq!(*held, bytes);
            assert!(held == held.clone() && held == shared(&bytes));
            assert!(held != shared(&[&bytes[..], b"x"].concat()));
        }
    }

    #[test]
    fn a_holder_is_as_small_as_a_pointer_also_where_there_may_be_none() {
        assert_eq!(size_of::<Option<SharedBytes>>(), size_of::<usize>());
        assert_eq!(SharedBytes::HEAD, 8);
    }

    #[test]
    fn a_clone_holds_the_same_bytes_until_it_is_dropped() {
        let first = shared(b"held");
        let second = first.clone();
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert_eq!(first.head().holders.load(Ordering::Relaxed), 2);
        drop(first);
        assert_eq!(second.head().holders.load(Ordering::Relaxed), 1);
        assert_eq!(*second, *b"held");
    }

    #[test]
    fn any_thread_may_be_the_last_that_holds_them() {
        const TURNS: usize = if cfg!(miri) { 20 } else { 5_000 };
        std::thread::scope(|scope| {
            let senders = [0; 3].map(|_| {
                let (sender, receiver) = mpsc::sync_channel::<SharedBytes>(4);
                scope.spawn(move || {
                    for held in receiver {
                        let more = [held.clone(), held.clone()];
                        drop(held);
                        assert!(
                            more.iter()
                                .all(|held| held.len() == 100 && held.iter().all(|byte| *byte == held[0]))
                        );
                    }
                });
                sender
            });
            for turn in 0..TURNS {
                let held = shared(&[turn as u8; 100]);
                for sender in &senders {
                    sender.send(held.clone()).expect("it listens");
                }
            }
        });
    }

    /// The last one is taken in a process of its own, which this ends.
    #[test]
    fn a_holder_too_many_ends_the_process() {
        const ASKED: &str = "TEST_A_HOLDER_TOO_MANY";
        let held = ManuallyDrop::new(shared(b"held"));
        held.head().holders.store(MOST_HOLDERS, Ordering::Relaxed);
        let last = ManuallyDrop::new(SharedBytes::clone(&held));
        assert_eq!(**last, *b"held");
        if std::env::var_os(ASKED).is_some() {
            drop(SharedBytes::clone(&held));
            return;
        }
        let test = std::thread::current().name().expect("a test's thread has its name").to_owned();
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        let output = again.args(["--exact", &test]).env(ASKED, "1").output().expect("it runs");
        assert_eq!(output.status.code(), None, "{output:?}");
    }
}
