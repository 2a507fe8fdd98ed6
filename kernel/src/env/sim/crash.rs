//! What the loss of power leaves of a disk: each name and each sector that was not synced is
//! there or not, by the dice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::random::Dice;
use super::tree::{Inode, Node, Tree, is_root};

/// The unit in which unsynced content is lost.
const SECTOR: usize = 512;

impl Tree {
    /// Replaces both states by one that a crash could leave.
    pub fn crash(&mut self, dice: &mut Dice) {
        let names = self.surviving_names(dice);
        let mut done: Vec<*const Mutex<Inode>> = Vec::new();
        for node in names.values() {
            if let Node::File(file) = node
                && !done.contains(&Arc::as_ptr(file))
            {
                done.push(Arc::as_ptr(file));
                file.lock().crash(dice);
            }
        }
        self.live.clone_from(&names);
        self.durable = names;
    }

    /// Each name that is the same live and durable stays; the others by the dice.
    fn surviving_names(&self, dice: &mut Dice) -> BTreeMap<PathBuf, Node> {
        let mut paths: Vec<&PathBuf> = self.live.keys().chain(self.durable.keys()).collect();
        paths.sort();
        paths.dedup();
        let mut names: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for path in paths {
            let (live, durable) = (self.live.get(path), self.durable.get(path));
            let settled = match (live, durable) {
                (Some(one), Some(two)) => one.same(two),
                _ => false,
            };
            let kept = if settled || dice.coin() { live } else { durable };
            let parent = path.parent().filter(|parent| !is_root(parent));
            let reachable = parent.is_none_or(|parent| names.contains_key(parent));
            if let (Some(node), true) = (kept, reachable) {
                names.insert(path.clone(), node.clone());
            }
        }
        names
    }
}

impl Inode {
    /// Replaces both states by one that a crash could leave.
    fn crash(&mut self, dice: &mut Dice) {
        if self.live != self.durable {
            self.live = match dice.below(4) {
                0 => self.durable.clone(),
                1 if !self.forgotten => self.live.clone(),
                _ => self.torn(dice),
            };
        }
        self.durable = self.live.clone();
        self.forgotten = false;
    }

    fn torn(&self, dice: &mut Dice) -> Vec<u8> {
        let (short, long) = {
            let (one, two) = (self.live.len(), self.durable.len());
            (one.min(two), one.max(two))
        };
        let len = match dice.below(3) {
            0 => self.live.len(),
            1 => short + dice.below((long - short) / SECTOR + 1) * SECTOR,
            _ => short + dice.below(long - short + 1),
        };
        let mut content = vec![0; len];
        for start in (0..len).step_by(SECTOR) {
            let end = (start + SECTOR).min(len);
            let source = if dice.coin() { &self.live } else { &self.durable };
            let have = source.len().min(end);
            if have > start {
                content[start..have].copy_from_slice(&source[start..have]);
            }
            // A sector that was durable and is unchanged stays what it was.
            let same = self.durable.len().min(self.live.len()).min(end);
            if same > start && self.durable[start..same] == self.live[start..same] {
                content[start..same].copy_from_slice(&self.durable[start..same]);
            }
        }
        content
    }
}
