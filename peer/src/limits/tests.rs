use proptest::prelude::*;
use tokio::task::JoinSet;

use super::*;

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

const LEAF: u64 = LEAF_LEN as u64;

#[tokio::test(start_paused = true)]
async fn unlimited_never_waits() {
    let bucket = Bucket::default();
    let start = Instant::now();
    for _ in 0..1000 {
        bucket.take(Class::Stream, 1 << 30).await;
    }
    assert_eq!(Instant::now(), start);
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_free_and_the_rest_is_paced() {
    let bucket = Bucket::new(10 * LEAF);
    let start = Instant::now();
    bucket.take(Class::Stream, LEAF).await;
    assert_eq!(Instant::now(), start);
    bucket.take(Class::Stream, 20 * LEAF).await;
    let took = start.elapsed().as_secs_f64();
    assert!((2.0..2.1).contains(&took), "{took}");
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served() {
    let bucket = Arc::new(Bucket::new(LEAF));
    bucket.take(Class::Stream, LEAF).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    for (number, bytes) in [(0, 4 * LEAF), (1, 1), (2, LEAF), (3, 1)] {
        let (bucket, order) = (bucket.clone(), order.clone());
        tasks.spawn(async move {
            bucket.take(Class::Stream, bytes).await;
            order.lock().push(number);
        });
        tokio::task::yield_now().await;
    }
    tasks.join_all().await;
    assert_eq!(*order.lock(), [0, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn who_is_more_urgent_does_not_wait_behind_bulk() {
    let bucket = Arc::new(Bucket::new(10 * LEAF));
    bucket.take(Class::Stream, LEAF).await;
    let mut bulk = JoinSet::new();
    for class in [Class::Background, Class::Stream, Class::Profile] {
        let bucket = bucket.clone();
        bulk.spawn(async move { bucket.take(class, 1000 * LEAF).await });
        tokio::task::yield_now().await;
    }
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(37)).await;
        let start = Instant::now();
        bucket.take(Class::Demand, LEAF).await;
        let took = start.elapsed().as_millis();
        assert!(took <= 101, "no longer than its own bytes take: {took} ms");
    }
    assert!(bulk.try_join_next().is_none());
    let order = Arc::new(Mutex::new(Vec::new()));
    bulk.abort_all();
    while bulk.join_next().await.is_some() {}
    let mut tasks = JoinSet::new();
    for class in [Class::Background, Class::Profile, Class::Stream, Class::Demand, Class::Background] {
        let (bucket, order) = (bucket.clone(), order.clone());
        tasks.spawn(async move {
            bucket.take(class, 2 * LEAF).await;
            order.lock().push(class);
        });
    }
    tokio::task::yield_now().await;
    tasks.join_all().await;
    let order = order.lock().clone();
    assert!(order.is_sorted(), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_holds_for_those_who_wait() {
    let bucket = Arc::new(Bucket::new(1));
    bucket.take(Class::Stream, LEAF).await;
    let waiting = tokio::spawn({
        let bucket = bucket.clone();
        async move { bucket.take(Class::Stream, LEAF).await }
    });
    tokio::task::yield_now().await;
    let start = Instant::now();
    bucket.set(LEAF);
    waiting.await.unwrap();
    let took = start.elapsed().as_secs_f64();
    assert!((0.9..1.1).contains(&took), "{took}");

    let waiting = tokio::spawn({
        let bucket = bucket.clone();
        async move { bucket.take(Class::Stream, 1000 * LEAF).await }
    });
    tokio::task::yield_now().await;
    bucket.set(0);
    let start = Instant::now();
    waiting.await.unwrap();
    assert_eq!(Instant::now(), start);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_lets_the_next_one_in() {
    let bucket = Arc::new(Bucket::new(LEAF));
    bucket.take(Class::Stream, LEAF).await;
    let blocked = tokio::spawn({
        let bucket = bucket.clone();
        async move { bucket.take(Class::Stream, 1_000_000 * LEAF).await }
    });
    tokio::task::yield_now().await;
    blocked.abort();
    assert!(blocked.await.unwrap_err().is_cancelled());
    let start = Instant::now();
    bucket.take(Class::Stream, LEAF).await;
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_correction_is_paid_by_the_next_one() {
    let bucket = Bucket::new(LEAF);
    bucket.take(Class::Stream, LEAF).await;
    bucket.settle(LEAF, 3 * LEAF);
    let start = Instant::now();
    bucket.take(Class::Stream, LEAF).await;
    let took = start.elapsed().as_secs_f64();
    assert!((2.9..3.1).contains(&took), "{took}");
    bucket.settle(LEAF, 0);
    let start = Instant::now();
    bucket.take(Class::Stream, LEAF).await;
    assert_eq!(Instant::now(), start);
}

#[test]
fn the_config_is_read_strictly() {
    let config: LimitsConfig = darter_service::config::parse("download = \"10MiB\"", "limits").unwrap();
    assert_eq!(config, LimitsConfig { download: 10 << 20, ..LimitsConfig::default() });
    let limits = Limits::new(&config);
    limits.set(&LimitsConfig { upload: 5, ..config });
    assert_eq!((limits.download.rate(), limits.upload.rate(), limits.origin.rate()), (10 << 20, 5, 0));
    assert!(darter_service::config::parse::<LimitsConfig>("speed = 1", "limits").is_err());
}

proptest! {
    /// Takes of at most a burst each, with pauses between: no window exceeds rate * t + burst.
    #[test]
    fn no_window_exceeds_the_rate_and_a_burst(
        rate in 1u64..50_000_000,
        takes in proptest::collection::vec((1u64..LEAF, 0u64..400), 1..40),
    ) {
        let taken = paused().block_on(async {
            let bucket = Bucket::new(rate);
            let mut taken = Vec::new();
            for (bytes, pause) in takes {
                bucket.take(Class::Stream, bytes).await;
                taken.push((Instant::now(), bytes));
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            taken
        });
        for (first, (start, _)) in taken.iter().enumerate() {
            let mut bytes = 0;
            for (at, more) in &taken[first..] {
                bytes += more;
                let allowed = rate as f64 * at.duration_since(*start).as_secs_f64() + burst(rate);
                prop_assert!(bytes as f64 <= allowed + 1.0, "{bytes} > {allowed}");
            }
        }
    }
}
