//! Where the search for work goes on.
//!
//! Work is taken in order, and what was taken leaves its entries behind in the index until Postgres cleans up; while anybody
//! holds a snapshot open (a long report, a dump) it cannot. So a search begins where all before is taken, instead of walking
//! over the same entries each time. It is only a short cut: what was committed late, or set back by hand, lies before that and
//! is found by a search from the beginning, which is made regularly.

use std::time::{Duration, Instant};

/// Where the next search begins.
#[derive(Debug)]
pub struct Bookmark<T> {
    place: Option<T>,
    /// When the search began from the beginning last.
    begun: Instant,
    /// So often it does anyway.
    interval: Duration,
}

impl<T: Copy> Bookmark<T> {
    pub fn new(interval: Duration) -> Self {
        Self { place: None, begun: Instant::now(), interval }
    }

    /// Where to begin now; none is the beginning.
    pub fn open(&mut self) -> Option<T> {
        if self.begun.elapsed() >= self.interval {
            self.place = None;
        }
        if self.place.is_none() {
            self.begun = Instant::now();
        }
        self.place
    }

    /// All before that is taken; none if that is not known.
    pub fn put(&mut self, place: Option<T>) {
        self.place = place;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_goes_on_from_where_all_before_is_taken() {
        let mut bookmark = Bookmark::new(Duration::from_secs(3600));
        assert_eq!(bookmark.open(), None);
        bookmark.put(Some(7));
        assert_eq!(bookmark.open(), Some(7));
        bookmark.put(None);
        assert_eq!(bookmark.open(), None);
    }

    #[test]
    fn it_begins_anew_regularly() {
        let mut bookmark = Bookmark::new(Duration::ZERO);
        bookmark.put(Some(7));
        assert_eq!(bookmark.open(), None);
    }
}
