//! Mapped memory: UMEMs, and the rings that sockets share with the kernel.

use std::alloc;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

pub use crate::events::HugepageRequest;

/// A readable and writable mapping, shared with the kernel, and unmapped on drop.
#[derive(Debug)]
pub(crate) struct Memory {
    start: NonNull<u8>,
    length: usize,
    hugepages: bool,
}

// SAFETY: it is only an address range; its users decide which thread accesses which part.
unsafe impl Send for Memory {}
// SAFETY: as above; its own methods only compute addresses.
unsafe impl Sync for Memory {}

/// 2 MiB, the default huge page of x86-64 and of arm64 with 4 KiB pages.
const HUGEPAGE: usize = 2 << 20;

/// So many huge pages are not free.
#[derive(Debug, thiserror::Error)]
#[error(
    "{count} huge pages of 2 MiB are not free ({error}): raise vm.nr_hugepages (sysctl -w \
     vm.nr_hugepages=N, for all queues)"
)]
pub(crate) struct NoHugePages {
    count: usize,
    error: io::Error,
}

impl Memory {
    /// Zeroed memory of at least `length` bytes, on the requested kind of pages.
    pub fn anonymous_on(pages: HugepageRequest, length: usize) -> io::Result<Self> {
        if pages == HugepageRequest::No {
            return Self::anonymous(length);
        }
        let rounded = length.next_multiple_of(HUGEPAGE);
        // Fails if no huge page is free, or if the kernel has none of this size.
        match Self::map(rounded, libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, None, 0) {
            Ok(mut memory) => {
                memory.hugepages = true;
                Ok(memory)
            }
            Err(error) if pages == HugepageRequest::Yes => {
                Err(io::Error::other(NoHugePages { count: rounded / HUGEPAGE, error }))
            }
            Err(_) => Self::anonymous(length),
        }
    }

    /// Zeroed memory of at least `length` bytes, on pages of the default size.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_ANONYMOUS, None, 0)
    }

    /// The same, followed by an inaccessible guard page: a write beyond the end faults there.
    pub fn guarded(length: usize) -> io::Result<Self> {
        let page = 64 << 10; // the largest page size
        let rounded = length.next_multiple_of(page);
        let memory = Self::map(rounded + page, libc::MAP_ANONYMOUS, None, 0)?;
        // SAFETY: the guard page is the last part of the mapping.
        let guard = unsafe { memory.start.add(rounded) };
        // SAFETY: nothing uses that page yet.
        let result = unsafe { libc::mprotect(guard.as_ptr().cast(), page, libc::PROT_NONE) };
        if result == 0 { Ok(memory) } else { Err(io::Error::last_os_error()) }
    }

    /// Maps `length` bytes of `fd` from `offset`.
    pub fn of_file(fd: BorrowedFd, length: usize, offset: i64) -> io::Result<Self> {
        Self::map(length, 0, Some(fd), offset)
    }

    fn map(length: usize, flags: i32, fd: Option<BorrowedFd>, offset: i64) -> io::Result<Self> {
        if cfg!(miri) {
            return Self::allocated(length);
        }
        let fd = fd.map_or(-1, |fd| fd.as_raw_fd());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // MAP_POPULATE: a page fault on the data path would take longer than a packet.
        let flags = flags | libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps no other.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::other("mmap returned address 0"))?;
        Ok(Self { start, length, hugepages: false })
    }

    /// For Miri, which does not support shared mappings.
    fn allocated(length: usize) -> io::Result<Self> {
        let layout = Self::layout(length)?;
        // SAFETY: the layout has at least one byte.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length, hugepages: false })
    }

    fn layout(length: usize) -> io::Result<alloc::Layout> {
        alloc::Layout::from_size_align(length.max(1), 4096).map_err(io::Error::other)
    }

    /// The address of the first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The length of the mapping, in bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether it is on huge pages.
    pub fn hugepages(&self) -> bool {
        self.hugepages
    }

    /// The address of `count` values of type `T` at byte `offset`; `None` if they would be
    /// misaligned or reach past the end.
    pub fn at<T>(&self, offset: usize, count: usize) -> Option<NonNull<T>> {
        let end = count.checked_mul(size_of::<T>())?.checked_add(offset)?;
        if end > self.length {
            return None;
        }
        // SAFETY: within the mapping, as just checked.
        let place = unsafe { self.start.add(offset) }.cast::<T>();
        place.is_aligned().then_some(place)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if cfg!(miri) {
            if let Ok(layout) = Self::layout(self.length) {
                // SAFETY: allocated with this layout, and nothing borrows it any more.
                unsafe { alloc::dealloc(self.start.as_ptr(), layout) };
            }
            return;
        }
        // SAFETY: the mapping has exactly this range, and nothing borrows it any more. The kernel
        // pinned the pages of a UMEM or ring that an open socket uses, so it writes to those pages,
        // not to this range.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_kernel_writes_up_to_the_guard_and_no_further() {
        let memory = Memory::guarded(100).unwrap();
        let zeros = File::open("/dev/zero").unwrap();
        let all = memory.length();
        // SAFETY: the range is mapped, and only this test uses it.
        let written = unsafe { libc::read(zeros.as_raw_fd(), memory.start().as_ptr().cast(), all) };
        assert_eq!(written as usize, all / 2, "the other half is the guard");
    }
}
