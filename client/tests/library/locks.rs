//! The lock: who has it, how it is kept, and how its loss is noticed.

use super::*;

const TTL: Duration = Duration::from_millis(300);

#[tokio::test]
async fn one_has_it_until_it_is_given_back() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let first = client.lock("lock", PATIENCE).await.expect("nobody has it");
    let held = client.try_lock("lock", PATIENCE).await.expect_err("it is held");
    assert!(held.is_not_met(), "{held}");
    let waits = client.with_deadline(SHORT).lock("lock", PATIENCE).await.expect_err("it is still held");
    assert!(waits.is_not_met(), "{waits}");
    let second = tokio::spawn({
        let client = client.clone();
        async move { client.lock("lock", PATIENCE).await }
    });
    let token = first.token();
    first.release().await.expect("it was held");
    let second = second.await.expect("no panic").expect("it was given back");
    assert!(second.token() > token && !second.is_lost());
    // Dropped, it is given back too.
    let token = second.token();
    drop(second);
    let third = client.lock("lock", PATIENCE).await.expect("it was given back");
    assert!(third.token() > token);
    drop(third);
    until("all is given back", || store.lock().writes.len() == 6).await;
    let short = client.lock("lock", Duration::from_millis(1)).await.expect_err("it can't be renewed");
    assert!(matches!(short, Error::Refused { .. }), "{short}");
}

#[tokio::test]
async fn contenders_have_it_one_after_the_other() {
    let (_, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let (inside, tokens) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let contenders = (0..8).map(|_| {
        let (client, inside, tokens) = (client.clone(), Arc::clone(&inside), Arc::clone(&tokens));
        async move {
            let lock = client.lock("lock", PATIENCE).await.expect("its turn comes");
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            tokens.lock().push(lock.token());
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            lock.release().await.expect("it was held");
        }
    });
    join_all(contenders).await;
    assert!(tokens.lock().is_sorted() && tokens.lock().len() == 8, "{tokens:?}");
}

#[tokio::test]
async fn it_is_renewed_and_keeps_its_token() {
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let lock = client.lock("lock", TTL).await.expect("nobody has it");
    let token = lock.token();
    until("it was renewed thrice", || store.lock().writes.len() >= 4).await;
    assert!(!lock.is_lost() && lock.token() == token);
    lock.release().await.expect("it was held, at another version");
    let left = client.get("lock").await.expect_err("it was given back");
    assert!(left.is_not_found(), "{left}");
}

#[tokio::test]
async fn a_renewal_whose_answer_is_lost_is_no_loss() {
    let node = FakeNode::start().await;
    let client = client(&[&node]).await;
    let lost = Arc::new(AtomicBool::new(false));
    node.script({
        let lost = Arc::clone(&lost);
        move |_, request| match request {
            Request::WriteRecord { write, .. }
                if write.condition != bitacora_protocol::WriteCondition::Absent =>
            {
                if lost.swap(true, Ordering::SeqCst) { Reaction::Answer } else { Reaction::Close }
            }
            _ => Reaction::Answer,
        }
    });
    let lock = client.lock("lock", TTL * 10).await.expect("nobody has it");
    until("a renewal was answered", || node.calls() >= 3).await;
    assert!(lost.load(Ordering::SeqCst) && !lock.is_lost());
    lock.release().await.expect("it was held");
}

#[tokio::test]
async fn its_loss_is_noticed() {
    // Another one has it: the key was changed.
    let (store, one, other) = two().await;
    let client = client(&[&one, &other]).await;
    let lock = client.lock("lock", TTL).await.expect("nobody has it");
    store.lock().overwrite("lock", "another");
    tokio::time::timeout(PATIENCE, lock.lost()).await.expect("it is noticed");
    assert!(lock.is_lost());
    lock.release().await.expect_err("it is another's");
    assert_eq!(client.get("lock").await.expect("it is untouched").value, "another");
    // No node answers until its time is over.
    let lock = client.lock("other", TTL).await.expect("nobody has it");
    for node in [&one, &other] {
        node.script(|_, _| Reaction::Never);
    }
    tokio::time::timeout(PATIENCE, lock.lost()).await.expect("it is noticed");
    assert!(lock.is_lost());
}
