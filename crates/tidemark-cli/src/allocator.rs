//! What the C library's allocator keeps for itself.
//!
//! Rows are decoded, merged and written by many threads that come and go. Left alone, glibc
//! gives up to eight arenas per core their own heap, and learns from the first large buffer
//! that is freed to keep all later ones of its size. So what one step of a restore gave back
//! stayed with the arenas of threads that had ended: a restore that asked for 130 MiB at
//! its height had up to 526 MiB resident, and how much was a matter of chance.

/// Arenas at most. Every thread has a cache of its own in front of them; with two, a restore
/// takes 1 % more time of the processor than with sixteen.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 2;

/// Bytes from which a buffer is mapped by itself and goes back to the system when it is freed:
/// glibc's own first value, which it no longer raises once somebody has set it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: libc::c_int = 128 << 10;

/// Lets memory go back to the system when it is freed. Called once, before there are threads.
pub(crate) fn keep_little() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` changes settings of the allocator only, and no other thread runs yet.
    // A setting that it refuses, which it says by returning 0, stays as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, MAPPED_BYTES_MIN);
    }
}

#[cfg(test)]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::sync::Barrier;

    use super::*;

    const THREADS: usize = 16;
    const BUFFER_BYTES: usize = 256 << 10;
    /// Of each thread.
    const BUFFERS: usize = 32;

    #[test]
    fn what_many_threads_free_goes_back_to_the_system() {
        keep_little();
        // A large buffer that is freed is what glibc learns the wrong thing from.
        drop(std::hint::black_box(vec![1u8; 24 << 20]));
        let before = anonymous_bytes();
        let (held, freed, looked) = (barrier(), barrier(), barrier());
        let (at_height, after) = std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let buffers: Vec<Vec<u8>> =
                        (0..BUFFERS).map(|at| vec![1 + at as u8; BUFFER_BYTES]).collect();
                    held.wait();
                    looked.wait();
                    drop(std::hint::black_box(buffers));
                    // Not ended yet: its arena would be handed to others.
                    freed.wait();
                    looked.wait();
                });
            }
            held.wait();
            let at_height = anonymous_bytes();
            looked.wait();
            freed.wait();
            let after = anonymous_bytes();
            looked.wait();
            (at_height - before, after.saturating_sub(before))
        });
        let all = (THREADS * BUFFERS * BUFFER_BYTES) as u64;
        assert!(at_height > all / 10 * 9, "{at_height} of {all} bytes were held");
        assert!(after < all / 8, "{after} of {all} bytes were kept");
    }

    fn barrier() -> Barrier {
        Barrier::new(THREADS + 1)
    }

    fn anonymous_bytes() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
    }
}
