//! The items of an epoll instance: a slab, an index, and the ready list threaded through it.

use crate::syscall::{EpollEvent, Fd};
use crate::vfs::FileId;
use alloc::vec::Vec;
use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

/// A watched file (Linux `struct epitem`).
#[derive(Debug, Clone, Copy)]
pub(super) struct EpItem {
    /// What is watched.
    pub(super) file: FileId,
    /// Under which descriptor.
    pub(super) fd: Fd,
    /// For what, and the caller's data.
    pub(super) event: EpollEvent,
    linked: bool,
    prev: u32,
    next: u32,
}

/// No item.
const NIL: u32 = u32::MAX;

/// All items of an instance.
#[derive(Debug)]
pub(super) struct Items {
    slots: Vec<Option<EpItem>>,
    free: Vec<u32>,
    index: HashMap<(FileId, Fd), u32, FxBuildHasher>,
    head: u32,
    tail: u32,
    ready: usize,
}

impl Default for Items {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), index: HashMap::default(), head: NIL, tail: NIL, ready: 0 }
    }
}

impl Items {
    /// Number of the item of a file under a descriptor.
    pub(super) fn find(&self, file: FileId, fd: Fd) -> Option<u32> {
        self.index.get(&(file, fd)).copied()
    }

    /// Adds an item, not ready.
    pub(super) fn insert(&mut self, file: FileId, fd: Fd, event: EpollEvent) -> u32 {
        let item = EpItem { file, fd, event, linked: false, prev: NIL, next: NIL };
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[at as usize] = Some(item);
        self.index.insert((file, fd), at);
        at
    }

    /// Removes an item, from the ready list too.
    pub(super) fn remove(&mut self, at: u32) -> EpItem {
        self.unlink(at);
        let item = self.slots[at as usize].take().expect("item exists");
        self.index.remove(&(item.file, item.fd));
        self.free.push(at);
        item
    }

    pub(super) fn get(&self, at: u32) -> &EpItem {
        self.slots[at as usize].as_ref().expect("item exists")
    }

    pub(super) fn get_mut(&mut self, at: u32) -> &mut EpItem {
        self.slots[at as usize].as_mut().expect("item exists")
    }

    /// Numbers of all items.
    pub(super) fn numbers(&self) -> Vec<u32> {
        (0..self.slots.len() as u32).filter(|&i| self.slots[i as usize].is_some()).collect()
    }

    /// Items.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Items on the ready list.
    pub(super) fn ready(&self) -> usize {
        self.ready
    }

    /// The first of the ready list.
    pub(super) fn first_ready(&self) -> Option<u32> {
        (self.head != NIL).then_some(self.head)
    }

    /// Takes the first off the ready list.
    pub(super) fn pop_ready(&mut self) -> Option<u32> {
        let at = self.first_ready()?;
        self.unlink(at);
        Some(at)
    }

    /// Appends an item to the ready list unless it stands there. True if it did not.
    pub(super) fn link_tail(&mut self, at: u32) -> bool {
        let tail = self.tail;
        let item = self.get_mut(at);
        if item.linked {
            return false;
        }
        item.linked = true;
        item.prev = tail;
        item.next = NIL;
        match tail {
            NIL => self.head = at,
            last => self.get_mut(last).next = at,
        }
        self.tail = at;
        self.ready += 1;
        true
    }

    /// Takes an item off the ready list if it stands there.
    pub(super) fn unlink(&mut self, at: u32) {
        let item = self.get_mut(at);
        if !item.linked {
            return;
        }
        item.linked = false;
        let (prev, next) = (item.prev, item.next);
        match prev {
            NIL => self.head = next,
            p => self.get_mut(p).next = next,
        }
        match next {
            NIL => self.tail = prev,
            n => self.get_mut(n).prev = prev,
        }
        self.ready -= 1;
    }
}
