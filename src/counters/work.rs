use super::counter::Counter;

/// Requests that make the machine work: models that write, make vectors, come or change.
#[derive(Debug, Default)]
pub(crate) struct Work {
    begun: Counter,
    ended: Counter,
}

/// One of them, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct WorkGuard<'a>(&'a Work);

impl Work {
    pub(crate) fn begin(&self) -> WorkGuard<'_> {
        self.begun.add(1);
        WorkGuard(self)
    }

    pub(crate) fn begun(&self) -> u64 {
        self.begun.value()
    }

    pub(crate) fn is_under_way(&self) -> bool {
        self.ended.value() < self.begun.value()
    }
}

impl Drop for WorkGuard<'_> {
    fn drop(&mut self) {
        self.0.ended.add(1);
    }
}
