//! Sets of page frames as bitmaps, with cheap ways to take one frame or a run of them.

/// A set of frame indices below a fixed length.
///
/// **Shape**: bit `i` of word `w` is frame `64 * w + i`.
#[derive(Debug)]
pub struct FrameSet<'a> {
    words: &'a mut [u64],
    len: u32,
    count: u32,
    /// Where the next search upwards starts, a word index.
    cursor: usize,
}

/// Adjacent frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First frame.
    pub first: u32,
    /// Number of frames.
    pub count: u32,
}

impl<'a> FrameSet<'a> {
    /// Words that a set of frames below `len` needs.
    #[must_use]
    pub const fn words_for(len: u32) -> usize {
        len.div_ceil(64) as usize
    }

    /// An empty set of frames below `len`.
    ///
    /// **Panics** if `words` is too short.
    #[must_use]
    pub fn new(words: &'a mut [u64], len: u32) -> Self {
        assert!(words.len() >= Self::words_for(len), "bitmap too short");
        words.fill(0);
        Self {
            words,
            len,
            count: 0,
            cursor: 0,
        }
    }

    /// Frames in the set.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Whether the frame is in the set.
    #[must_use]
    pub fn contains(&self, frame: u32) -> bool {
        self.words
            .get(frame as usize / 64)
            .is_some_and(|word| word >> (frame % 64) & 1 == 1)
    }

    /// Puts every frame below the length into the set.
    pub fn insert_all(&mut self) {
        for frame in 0..self.len {
            self.insert(frame);
        }
    }

    /// Puts a frame into the set.
    ///
    /// **Panics** if it is there already or out of range: a page would have two owners.
    pub fn insert(&mut self, frame: u32) {
        assert!(frame < self.len, "frame {frame} of {}", self.len);
        assert!(!self.contains(frame), "frame {frame} inserted twice");
        self.words[frame as usize / 64] |= 1 << (frame % 64);
        self.count += 1;
    }

    fn remove(&mut self, frame: u32) {
        self.words[frame as usize / 64] &= !(1 << (frame % 64));
        self.count -= 1;
    }

    /// Takes a frame, going upwards from the last one taken and around.
    pub fn take_up(&mut self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        for step in 0..self.words.len() {
            let at = (self.cursor + step) % self.words.len();
            if self.words[at] != 0 {
                self.cursor = at;
                let frame = at as u32 * 64 + self.words[at].trailing_zeros();
                self.remove(frame);
                return Some(frame);
            }
        }
        None
    }

    /// Takes the highest frame.
    pub fn take_top(&mut self) -> Option<u32> {
        if self.count == 0 {
            return None;
        }
        let at = self.words.iter().rposition(|word| *word != 0)?;
        let frame = at as u32 * 64 + 63 - self.words[at].leading_zeros();
        self.remove(frame);
        Some(frame)
    }

    /// Takes the lowest run of at least `min` frames, and of that at most `max`.
    pub fn take_run(&mut self, min: u32, max: u32) -> Option<Run> {
        if self.count < min {
            return None;
        }
        let mut frame = 0;
        while frame < self.len {
            if frame.is_multiple_of(64) && self.words[frame as usize / 64] == 0 {
                frame += 64;
                continue;
            }
            let mut count = 0;
            while count < max && frame + count < self.len && self.contains(frame + count) {
                count += 1;
            }
            if count >= min {
                (frame..frame + count).for_each(|taken| self.remove(taken));
                return Some(Run {
                    first: frame,
                    count,
                });
            }
            frame += count + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<R>(len: u32, frames: &[u32], test: impl FnOnce(&mut FrameSet<'_>) -> R) -> R {
        let mut words = vec![u64::MAX; FrameSet::words_for(len)];
        let mut set = FrameSet::new(&mut words, len);
        frames.iter().for_each(|frame| set.insert(*frame));
        test(&mut set)
    }

    #[test]
    fn takes_upwards_and_from_the_top() {
        with(200, &[3, 70, 71, 199], |set| {
            assert_eq!(set.take_up(), Some(3));
            assert_eq!(set.take_top(), Some(199));
            assert_eq!(set.take_up(), Some(70));
            set.insert(0);
            assert_eq!(set.take_up(), Some(71), "goes on upwards before it wraps");
            assert_eq!(set.take_up(), Some(0));
            assert_eq!(set.take_up(), None);
            assert_eq!(set.take_top(), None);
            assert_eq!(set.count(), 0);
        });
    }

    #[test]
    fn all_frames_and_no_more() {
        with(65, &[], |set| {
            set.insert_all();
            assert_eq!(set.count(), 65);
            assert!(set.contains(64) && !set.contains(65));
            assert_eq!(
                set.take_run(2, 1000),
                Some(Run {
                    first: 0,
                    count: 65
                })
            );
            assert_eq!(set.take_run(1, 1), None);
        });
    }

    #[test]
    fn runs_shorter_than_the_least_are_left() {
        with(300, &[1, 2, 62, 63, 64, 65, 130], |set| {
            assert_eq!(
                set.take_run(3, 3),
                Some(Run {
                    first: 62,
                    count: 3
                })
            );
            assert_eq!(set.take_run(3, 3), None);
            assert_eq!(set.take_run(2, 8), Some(Run { first: 1, count: 2 }));
            assert_eq!(set.count(), 2);
        });
    }

    #[test]
    #[should_panic(expected = "inserted twice")]
    fn a_frame_has_one_place() {
        with(10, &[1, 1], |_| ());
    }
}
