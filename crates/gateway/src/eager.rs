//! Polling again at once what wakes itself.
//!
//! hyper reads a request's body and runs its handler in one task: each piece of body that arrives wakes the
//! very task that is running. The runtime takes that for a task that gives way to others, puts it at the end of
//! its queue and wakes another thread to help, which is most of what a short request costs. Here such a task is
//! polled again instead, a few times.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often in a row before others get their turn.
const TIMES: usize = 8;

/// A future that is polled again at once when it wakes itself, a few times.
pub struct Eager<F> {
    future: Pin<Box<F>>,
    signal: Arc<Signal>,
    waker: Waker,
}

#[derive(Default)]
struct Signal {
    outer: AtomicWaker,
    polling: AtomicBool,
    woken: AtomicBool,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // In this order: either this sees that nobody polls, or the one who polls sees this.
        self.woken.store(true, SeqCst);
        if !self.polling.load(SeqCst) {
            self.outer.wake();
        }
    }
}

impl<F> std::fmt::Debug for Eager<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eager").finish_non_exhaustive()
    }
}

impl<F> Eager<F> {
    /// For a task that hands something over to itself: one that reads and works in turns.
    pub fn new(future: F) -> Self {
        let signal = Arc::new(Signal::default());
        Self {
            future: Box::pin(future),
            waker: signal.clone().into(),
            signal,
        }
    }
}

impl<F: Future> Future for Eager<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self {
            future,
            signal,
            waker,
        } = &mut *self;
        signal.outer.register(context.waker());
        for _ in 0..TIMES {
            signal.polling.store(true, SeqCst);
            signal.woken.store(false, SeqCst);
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(output);
            }
            signal.polling.store(false, SeqCst);
            if !signal.woken.load(SeqCst) {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        task::{Context, Poll, Wake},
    };

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// Wakes itself so many times before it is ready.
    fn restless(mut times: usize) -> impl Future<Output = ()> {
        std::future::poll_fn(move |context| {
            if times == 0 {
                return Poll::Ready(());
            }
            times -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn poll_once(future: &mut (impl Future<Output = ()> + Unpin)) -> (Poll<()>, usize) {
        let counter = Arc::new(Counter::default());
        let waker = counter.clone().into();
        let polled = Pin::new(future).poll(&mut Context::from_waker(&waker));
        (polled, counter.0.load(SeqCst))
    }

    #[test]
    fn what_wakes_itself_goes_on_at_once() {
        let mut future = Eager::new(restless(TIMES - 1));
        assert_eq!(poll_once(&mut future), (Poll::Ready(()), 0));
    }

    #[test]
    fn others_get_their_turn() {
        let mut future = Eager::new(restless(TIMES));
        assert_eq!(poll_once(&mut future), (Poll::Pending, 1));
        assert_eq!(poll_once(&mut future), (Poll::Ready(()), 0));
    }

    #[tokio::test]
    async fn a_wake_from_elsewhere_arrives() {
        for _ in 0..1000 {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let waiting = tokio::spawn(Eager::new(receiver));
            std::thread::spawn(move || sender.send(7));
            assert_eq!(waiting.await.ok(), Some(Ok(7)));
        }
    }
}
