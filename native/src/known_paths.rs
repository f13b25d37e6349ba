//! What is stored instead of paths that came without a template: answers of Python that stay valid.

use std::ops::Range;

use hashbrown::{HashMap, HashSet};

const KNOWN_BYTES_MAX: usize = 4 * 1024 * 1024;
const BYTES_A_PATH: usize = 64;
const PATTERNS_MAX: usize = 64;

/// An answer of `ask`: the path to store, in JSON, or None for the path itself; whether older answers are void; and
/// whether the answer also holds for every path that differs only where the answer has the wildcard.
pub type Answer = (Option<Vec<u8>>, bool, bool);

/// Answers that stay valid, by owner: paths that are stored as they are, and patterns.
#[derive(Default)]
pub struct Known {
    wildcard: Vec<u8>,
    by_owner: HashMap<Box<[u8]>, HashSet<Box<[u8]>>>,
    patterns: HashMap<Box<[u8]>, Vec<Box<[u8]>>>,
    pub bytes: usize,
}

impl Known {
    #[must_use]
    pub fn new(wildcard: Vec<u8>) -> Self {
        Self { wildcard, ..Self::default() }
    }

    pub fn pattern_of(&self, owner: &[u8], path: &[u8]) -> Option<&[u8]> {
        let mut patterns = self.patterns.get(owner)?.iter().map(AsRef::as_ref);
        patterns.find(|pattern| is_like(path, pattern, &self.wildcard))
    }

    pub fn insert_pattern(&mut self, owner: &[u8], pattern: &[u8]) {
        let patterns = self.patterns.entry(owner.into()).or_default();
        if patterns.len() < PATTERNS_MAX {
            self.bytes += BYTES_A_PATH + owner.len() + pattern.len();
            patterns.push(pattern.into());
        }
        if self.bytes > KNOWN_BYTES_MAX {
            self.clear();
        }
    }

    pub fn holds(&self, owner: &[u8], path: &[u8]) -> bool {
        self.by_owner.get(owner).is_some_and(|paths| paths.contains(path))
    }

    pub fn insert(&mut self, owner: &[u8], path: &[u8]) {
        if self.bytes > KNOWN_BYTES_MAX {
            self.clear();
        }
        self.bytes += BYTES_A_PATH + path.len() + if self.by_owner.contains_key(owner) { 0 } else { owner.len() };
        self.by_owner.entry(owner.into()).or_default().insert(path.into());
    }

    pub fn clear(&mut self) {
        self.by_owner.clear();
        self.patterns.clear();
        self.bytes = 0;
    }
}

/// Whether path and pattern, both in quotes, have the same segments but for the pattern's wildcards.
fn is_like(path: &[u8], pattern: &[u8], wildcard: &[u8]) -> bool {
    let bare = |text: &[u8]| -> Range<usize> { 1..text.len().saturating_sub(1).max(1) };
    let (path, pattern) = (&path[bare(path)], &pattern[bare(pattern)]);
    let mut segments = path.split(|&byte| byte == b'/');
    for expected in pattern.split(|&byte| byte == b'/') {
        match segments.next() {
            Some(segment) if segment == expected || expected == wildcard => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}
