//! Windows that are computed again because somebody asked for it, some at a time.

use kymo_kernel::Result;
use kymo_kernel::ids::TimeRange;

use super::super::registry::{Backfill, Progress};
use super::Runner;

/// A backfill under way.
pub(super) struct Filling {
    wish: Backfill,
    /// The starts of windows that are left.
    left: TimeRange,
    progress: Progress,
}

impl Runner {
    /// Takes up a wish to compute windows again.
    pub(super) fn begin(&mut self, wish: Backfill) -> Result<()> {
        let wanted = self.spec.starts(wish.times);
        let rows = self.extent();
        let inside = rows.map(|rows| TimeRange {
            first: wanted.first.max(rows.first),
            last: wanted.last.min(rows.last),
        });
        let left = inside.filter(|left| left.first <= left.last);
        let of = left.map_or(0, |left| self.spec.count(left));
        let of = u64::try_from(of).unwrap_or(u64::MAX);
        let progress = Progress { of, upto: wish.times.first, ..Progress::default() };
        self.entry.note(|figures| figures.backfill = Some((0, of)));
        match left {
            Some(left) => self.backfill = Some(Filling { wish, left, progress }),
            None => {
                // Who asked learns from the end of the reports that nothing was left to do.
                let _ = wish.reports.try_send(Ok(progress));
                self.entry.fulfilled();
            }
        }
        Ok(())
    }

    /// One piece of the backfill; ends it where nobody wants it any more.
    pub(super) async fn fill(&mut self) -> Result<()> {
        let Some(mut filling) = self.backfill.take() else { return Ok(()) };
        let end = self.end_of(filling.left.first, filling.left.last);
        let piece = TimeRange { first: filling.left.first, last: end };
        // What the states have of these windows is not trusted: that is what a backfill is for.
        self.query.reopen(piece);
        let Some(wrote) = self.smaller(piece).await? else {
            self.backfill = Some(filling);
            return Ok(());
        };
        let windows = self.spec.count(piece);
        let progress = &mut filling.progress;
        progress.windows += u64::try_from(windows).unwrap_or(u64::MAX);
        progress.rows += wrote.rows;
        progress.upto = self.spec.next(self.spec.start(end));
        let (done, of) = (progress.windows, progress.of);
        self.entry.note(|figures| figures.backfill = Some((done, of)));
        let report = Ok(filling.progress);
        let wanted = tokio::select! {
            biased;
            sent = filling.wish.reports.send(report) => sent.is_ok(),
            // Who does not take reports is not waited for.
            () = self.context.clock.sleep(self.context.check_every) => true,
        };
        filling.left.first = end.saturating_add(1);
        if wanted && filling.left.first <= filling.left.last {
            self.backfill = Some(filling);
        } else {
            self.entry.fulfilled();
        }
        Ok(())
    }
}
