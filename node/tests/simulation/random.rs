/// What is up to chance in a run; nothing is in a history.
pub enum Random {
    /// `SplitMix64`: small, and the same everywhere.
    Seeded(u64),
    Off,
}

impl Random {
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; without chance `n - 1`.
    pub fn below(&mut self, n: u64) -> u64 {
        match self {
            Self::Seeded(state) => Self::next(state) % n.max(1),
            Self::Off => n.saturating_sub(1),
        }
    }

    /// Without chance never.
    pub fn one_in(&mut self, n: u64) -> bool {
        !self.is_off() && self.below(n) == 0
    }

    /// Both bounds included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1).unsigned_abs()) as i64
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }
}
