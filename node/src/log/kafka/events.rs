//! The few things that librdkafka tells and its Rust binding drops: the offset at which a partition ended, a topic's id, its settings
//! without a client of their own, and whether a failed record may have reached a broker; and how a client is given a token without being
//! asked for it.
//! All unsafe code of the Kafka log is here.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as sys;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::BorrowedMessage;
use sys::rd_kafka_resp_err_t as Code;

use super::client::LastProblem;
use crate::clock::LogTime;
use crate::log::{Batch, Condition, Level, LogRecord};
use crate::telemetry::TraceParent;
use bitacora_protocol::{NextOffset, Position};

/// What a consumer's queue held.
pub(super) enum Event {
    Nothing,
    /// Records were added to the batch.
    Records,
    /// The partition is read to its end. Its offset may lie beyond the last record's: transaction markers and records
    /// lost to compaction take offsets too (KAFKA-12951), so it is taken from the broker's answer.
    End {
        partition: i32,
        next: NextOffset,
    },
    /// The offset that the consumer stands at is not in the partition.
    OutOfRange {
        partition: i32,
    },
    /// librdkafka's statistics, as JSON.
    Statistics(Vec<u8>),
    /// Nothing that the log's order depends on: a commit's result, a connection that comes back by itself.
    Other,
    /// A record that can't be read here, and must not be passed over.
    Unreadable(String),
    Fatal(String),
}

/// A consumer and its queue of events.
pub(super) struct ConsumerQueue {
    // Before the consumer, so that it is dropped first.
    queue: Queue,
    consumer: Arc<BaseConsumer<LastProblem>>,
}

struct Queue(NonNull<sys::rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the reference that `rd_kafka_queue_get_consumer` gave, released once.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

struct EventPtr(NonNull<sys::rd_kafka_event_t>);

impl Drop for EventPtr {
    fn drop(&mut self) {
        // SAFETY: `rd_kafka_queue_poll` gave the event to us, released once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

struct MessagePtr(NonNull<sys::rd_kafka_message_t>);

impl Drop for MessagePtr {
    fn drop(&mut self) {
        // SAFETY: `rd_kafka_consume_batch_queue` gave the message to us, released once.
        unsafe { sys::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl ConsumerQueue {
    /// `None` if librdkafka has no queue for it, which takes a consumer without a group.
    pub(super) fn new(consumer: Arc<BaseConsumer<LastProblem>>) -> Option<Self> {
        // SAFETY: the client lives as long as `consumer`, which is dropped after the queue.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue: Queue(queue), consumer })
    }

    pub(super) fn consumer(&self) -> &BaseConsumer<LastProblem> {
        &self.consumer
    }

    /// Takes some of the records, and of the ends of partitions, that are there already, which is less work than one event for each.
    /// What librdkafka tells besides, such as statistics, is dropped where it lies between them. Returns an error of a partition if there
    /// is one: what was behind it is not in the batch.
    pub(super) fn take_records(&self, batch: &mut Batch) -> Option<Event> {
        const MESSAGES: usize = 256;
        let mut messages = [std::ptr::null_mut(); MESSAGES];
        // SAFETY: the queue is alive, and there is room for as many messages.
        let count = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.0.as_ptr(), 0, messages.as_mut_ptr(), MESSAGES)
        };
        let messages = messages.into_iter().take(usize::try_from(count).unwrap_or(0));
        // All of them, so that each is released.
        let messages: Vec<_> = messages.filter_map(NonNull::new).map(MessagePtr).collect();
        for message in messages {
            // SAFETY: the message lives until `MessagePtr` is dropped, and everything read from it is copied before.
            match unsafe { take(message.0.as_ref(), batch) } {
                Event::End { partition, next } if partition >= 0 => batch.reached(partition, next),
                error @ (Event::OutOfRange { .. } | Event::Unreadable(_) | Event::Fatal(_)) => {
                    return Some(error);
                }
                _ => {}
            }
        }
        None
    }

    /// Waits for one event; records go into `batch`.
    pub(super) fn poll(&self, wait: Duration, batch: &mut Batch) -> Event {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.0.as_ptr(), wait_ms) };
        let Some(event) = NonNull::new(event).map(EventPtr) else { return Event::Nothing };
        let event = event.0.as_ptr();
        // SAFETY: the event lives until `EventPtr` is dropped at the end of this function, and everything read from it
        // is copied before.
        unsafe {
            match sys::rd_kafka_event_type(event) {
                sys::RD_KAFKA_EVENT_FETCH => fetched(event, batch),
                sys::RD_KAFKA_EVENT_ERROR => error(event),
                sys::RD_KAFKA_EVENT_STATS => statistics(event),
                _ => Event::Other,
            }
        }
    }
}

/// SAFETY: `event` is alive and of the type FETCH.
unsafe fn fetched(event: *mut sys::rd_kafka_event_t, batch: &mut Batch) -> Event {
    loop {
        // SAFETY: the message lives as long as the event.
        let found = unsafe {
            let message = sys::rd_kafka_event_message_next(event);
            let Some(message) = message.as_ref() else { return Event::Records };
            take(message, batch)
        };
        if !matches!(found, Event::Records) {
            return found;
        }
    }
}

/// Puts a message into the batch, or tells what it says instead.
///
/// SAFETY: `message` and its bytes are alive; lengths and pointers belong together.
unsafe fn take(message: &sys::rd_kafka_message_t, batch: &mut Batch) -> Event {
    match message.err {
        Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
        Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
            return Event::End { partition: message.partition, next: NextOffset(message.offset) };
        }
        code => return failed(code, message.partition, false),
    }
    // SAFETY: as promised.
    unsafe {
        let bytes = |at: *mut std::ffi::c_void, length: usize| {
            (!at.is_null()).then(|| slice::from_raw_parts(at.cast::<u8>(), length))
        };
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let timestamp = LogTime::from_ms(sys::rd_kafka_message_timestamp(message, &raw mut kind));
        if kind == sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME {
            batch.appended_at(timestamp);
        }
        let position = Position { partition: message.partition, offset: message.offset };
        let (key, value) = (bytes(message.key, message.key_len), bytes(message.payload, message.len));
        let epoch = Some(sys::rd_kafka_message_leader_epoch(message)).filter(|epoch| *epoch >= 0);
        if is_lost_by_client(key, value, epoch) {
            return Event::Unreadable(format!(
                "partition {} has at offset {} a record in the format of Kafka before 0.11, which the Kafka client of this node can't \
                 read; copy the topic to a new one, as docs/migration.md says",
                position.partition, position.offset
            ));
        }
        let headers = headers(message);
        if let Some(trace) = headers.and_then(|headers| trace(headers)) {
            batch.add_trace(position, trace);
        }
        batch.push(LogRecord {
            position,
            timestamp,
            key,
            value,
            condition: headers.and_then(|headers| condition(headers)),
            level: headers.and_then(|headers| level(headers)),
            epoch,
        });
    }
    Event::Records
}

/// Whether librdkafka has lost what the record says: of one in the formats of Kafka before 0.11 it gives neither key nor value (its issue
/// 5549). Those formats have no epoch; all others have one. A record that is skipped would be a key that is lost without a word.
fn is_lost_by_client(key: Option<&[u8]>, value: Option<&[u8]>, epoch: Option<i32>) -> bool {
    key.is_none() && value.is_none() && epoch.is_none()
}

/// SAFETY: `event` is alive and of the type STATS.
unsafe fn statistics(event: *mut sys::rd_kafka_event_t) -> Event {
    // SAFETY: the text ends with a zero and lives as long as the event.
    unsafe {
        let json = sys::rd_kafka_event_stats(event);
        if json.is_null() {
            Event::Other
        } else {
            Event::Statistics(CStr::from_ptr(json).to_bytes().to_vec())
        }
    }
}

/// A message's headers; `None` if it has none, which is the rule.
///
/// SAFETY: `message` is alive. What is returned lives as long as it.
unsafe fn headers(message: &sys::rd_kafka_message_t) -> Option<*mut sys::rd_kafka_headers_t> {
    let mut headers = std::ptr::null_mut();
    // SAFETY: as promised.
    let found = unsafe { sys::rd_kafka_message_headers(message, &raw mut headers) };
    (found == Code::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(headers)
}

/// The last header of a name; empty if it has no value.
///
/// SAFETY: the message of the headers is alive. What is returned lives as long as it.
unsafe fn header<'a>(headers: *mut sys::rd_kafka_headers_t, name: &CStr) -> Option<&'a [u8]> {
    let (mut value, mut size) = (std::ptr::null(), 0);
    // SAFETY: as promised; pointer and length belong together.
    unsafe {
        let found = sys::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut size);
        let bytes = if value.is_null() { &[] } else { slice::from_raw_parts(value.cast(), size) };
        (found == Code::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(bytes)
    }
}

/// The condition in the headers, if there is one.
///
/// SAFETY: the message of the headers is alive.
unsafe fn condition(headers: *mut sys::rd_kafka_headers_t) -> Option<Condition> {
    let conditions = [
        (Condition::TRIM, c"bitacora-trim"),
        (Condition::REPAIR, c"bitacora-repair"),
        (Condition::ATTEMPT, c"bitacora-attempt"),
    ];
    conditions.into_iter().find_map(|(name, c_name)| {
        // SAFETY: as promised.
        let value = unsafe { header(headers, c_name) }?;
        Some(Condition::from_header(name, value))
    })
}

/// The level that the headers tell, if they do.
///
/// SAFETY: the message of the headers is alive.
unsafe fn level(headers: *mut sys::rd_kafka_headers_t) -> Option<Level> {
    // SAFETY: as promised.
    Level::from_header(unsafe { header(headers, c"bitacora-level") }?)
}

/// The trace in the headers, if there is one.
///
/// SAFETY: the message of the headers is alive.
unsafe fn trace(headers: *mut sys::rd_kafka_headers_t) -> Option<TraceParent> {
    // SAFETY: as promised.
    TraceParent::parse(unsafe { header(headers, c"traceparent") }?)
}

/// SAFETY: `event` is alive and of the type ERROR.
unsafe fn error(event: *mut sys::rd_kafka_event_t) -> Event {
    // SAFETY: as promised; the topic-partition is ours to destroy.
    unsafe {
        let code = sys::rd_kafka_event_error(event);
        let (mut partition, mut offset) = (-1, -1);
        let place = sys::rd_kafka_event_topic_partition(event);
        if let Some(at) = place.as_ref() {
            (partition, offset) = (at.partition, at.offset);
            sys::rd_kafka_topic_partition_destroy(place);
        }
        if code == Code::RD_KAFKA_RESP_ERR__PARTITION_EOF {
            return Event::End { partition, next: NextOffset(offset) };
        }
        failed(code, partition, sys::rd_kafka_event_error_is_fatal(event) != 0)
    }
}

fn failed(code: Code, partition: i32, fatal: bool) -> Event {
    let text = text(code);
    match code {
        Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
            Event::OutOfRange { partition }
        }
        Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
        | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID
        | Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => Event::Fatal(text),
        _ if fatal => Event::Fatal(text),
        _ => {
            tracing::debug!(partition, reason = text, "librdkafka reports a problem and goes on");
            Event::Other
        }
    }
}

/// Has librdkafka ask the leader, before it reads on from an offset of the list, where the log of that epoch ended (KIP-320).
pub(super) fn set_leader_epoch(offsets: &mut TopicPartitionList, topic: &str, partition: i32, epoch: i32) {
    let Ok(topic) = CString::new(topic) else { return };
    // SAFETY: the list is alive, and what is found in it is part of it.
    unsafe {
        let found = sys::rd_kafka_topic_partition_list_find(offsets.ptr(), topic.as_ptr(), partition);
        if !found.is_null() {
            sys::rd_kafka_topic_partition_set_leader_epoch(found, epoch);
        }
    }
}

/// What a broker says of a topic.
pub(super) struct Described {
    /// Changes when the topic is deleted and created again; `None` if brokers have no ids yet (before 2.8).
    pub topic_id: Option<String>,
    pub partitions: usize,
}

/// What a broker says of a topic's settings, defaults included; an error is what it says instead.
pub(super) type TopicConfig = Result<HashMap<String, String>, RDKafkaErrorCode>;

/// Waits for a broker, no longer than `timeout`.
pub(super) fn describe(
    client: &BaseConsumer<LastProblem>,
    topic: &str,
    timeout: Duration,
) -> Result<Described, String> {
    const NO_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";
    let name = CString::new(topic).map_err(|error| error.to_string())?;
    let kind = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: the collection is ours and destroyed once; librdkafka copies what it keeps of it.
    let answer = ask(client, kind, timeout, |client, options, queue| unsafe {
        let mut names = name.as_ptr();
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(&raw mut names, 1);
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
    })?;
    // SAFETY: everything that is read from the event is copied before its end.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(answer.0.as_ptr());
        if result.is_null() {
            return Err("librdkafka answered another question".to_owned());
        }
        let mut count = 0;
        let found = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if found.is_null() || count != 1 {
            return Err(format!("{count} topics were described"));
        }
        let found = *found;
        let error = sys::rd_kafka_TopicDescription_error(found);
        match if error.is_null() { Code::RD_KAFKA_RESP_ERR_NO_ERROR } else { sys::rd_kafka_error_code(error) }
        {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            code => return Err(text(code)),
        }
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(found, &raw mut partitions);
        let id = sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(found));
        let id = (!id.is_null()).then(|| CStr::from_ptr(id).to_string_lossy().into_owned());
        Ok(Described { topic_id: id.filter(|id| id != NO_ID), partitions })
    }
}

/// Waits for a broker, no longer than `timeout`. rdkafka's own call takes a client of its own, with its threads and connections, and a
/// tenth of a second to end it.
pub(super) fn describe_config(
    client: &BaseConsumer<LastProblem>,
    topic: &str,
    timeout: Duration,
) -> Result<TopicConfig, String> {
    let name = CString::new(topic).map_err(|error| error.to_string())?;
    let kind = sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    // SAFETY: the resource is ours and destroyed once; librdkafka copies what it keeps of it.
    let answer = ask(client, kind, timeout, |client, options, queue| unsafe {
        let of_topic = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        let mut resource = sys::rd_kafka_ConfigResource_new(of_topic, name.as_ptr());
        sys::rd_kafka_DescribeConfigs(client, &raw mut resource, 1, options, queue);
        sys::rd_kafka_ConfigResource_destroy(resource);
    })?;
    // SAFETY: everything that is read from the event is copied before its end; librdkafka gives as many entries as it says.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(answer.0.as_ptr());
        if result.is_null() {
            return Err("librdkafka answered another question".to_owned());
        }
        let mut count = 0;
        let found = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        if found.is_null() || count != 1 {
            return Err(format!("the settings of {count} topics were described"));
        }
        let found = *found;
        match sys::rd_kafka_ConfigResource_error(found) {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            code => return Ok(Err(code.into())),
        }
        let mut count = 0;
        let entries = sys::rd_kafka_ConfigResource_configs(found, &raw mut count);
        let entries = if entries.is_null() { &[] } else { slice::from_raw_parts(entries, count) };
        let copied = |text: *const c_char| {
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let pairs = entries.iter().map(|entry| {
            Some((
                copied(sys::rd_kafka_ConfigEntry_name(*entry))?,
                copied(sys::rd_kafka_ConfigEntry_value(*entry))?,
            ))
        });
        Ok(Ok(pairs.flatten().collect()))
    }
}

/// Has `call` put a question of this kind, and waits for the event with the answer, no longer than `timeout`.
fn ask(
    client: &BaseConsumer<LastProblem>,
    kind: sys::rd_kafka_admin_op_t,
    timeout: Duration,
    call: impl FnOnce(*mut sys::rd_kafka_t, *const sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> Result<EventPtr, String> {
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = client.client().native_ptr();
    // SAFETY: the client outlives this function. The queue, the options and the event are ours, each destroyed once; librdkafka copies
    // what it keeps of the options.
    unsafe {
        let queue = NonNull::new(sys::rd_kafka_queue_new(client)).map(Queue).ok_or("there is no queue")?;
        let options = sys::rd_kafka_AdminOptions_new(client, kind);
        let refused =
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, std::ptr::null_mut(), 0);
        if refused == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            call(client, options, queue.0.as_ptr());
        }
        sys::rd_kafka_AdminOptions_destroy(options);
        let event = sys::rd_kafka_queue_poll(queue.0.as_ptr(), timeout_ms.saturating_add(100));
        let event = NonNull::new(event).map(EventPtr).ok_or("no broker answered in time")?;
        match sys::rd_kafka_event_error(event.0.as_ptr()) {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
            code => Err(text(code)),
        }
    }
}

/// librdkafka's words for a code.
fn text(code: Code) -> String {
    // SAFETY: librdkafka returns a constant text for every code.
    unsafe { CStr::from_ptr(sys::rd_kafka_err2str(code)).to_string_lossy().into_owned() }
}

/// Gives a client the token that it shows to brokers from now on, where it connects and where it is asked again who it is.
/// `principal` is for librdkafka's log lines; `extensions` are names and values, one after the other.
///
/// # Errors
/// When librdkafka refuses it, in its words.
pub(super) fn set_token<C: ClientContext>(
    client: &Client<C>,
    token: &CStr,
    principal: &CStr,
    extensions: &[CString],
) -> Result<(), String> {
    // Far away: librdkafka does nothing with it but ask for the next token, by an event that waits where nobody polls the client.
    const LAST_MS_OF_THE_YEAR_9999: i64 = 253_402_300_799_999;
    let mut extensions: Vec<_> = extensions.iter().map(|text| text.as_ptr()).collect();
    let mut reason = [0; 512];
    // SAFETY: the client and all texts outlive the call, and librdkafka copies what it keeps. Pointers and lengths belong together.
    unsafe {
        let code = sys::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            token.as_ptr(),
            LAST_MS_OF_THE_YEAR_9999,
            principal.as_ptr(),
            extensions.as_mut_ptr(),
            extensions.len(),
            reason.as_mut_ptr(),
            reason.len(),
        );
        if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(());
        }
        // librdkafka ends it with a zero.
        Err(CStr::from_ptr(reason.as_ptr()).to_string_lossy().into_owned())
    }
}

/// librdkafka's clock (`rd_clock`), in µs: that of its statistics' `ts`.
pub(super) fn clock() -> i64 {
    if cfg!(target_os = "macos") {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000)
}

/// How long ago the record was handed to librdkafka, in µs, if that is known.
pub(super) fn latency(message: &BorrowedMessage<'_>) -> Option<i64> {
    // SAFETY: the message is alive.
    let latency = unsafe { sys::rd_kafka_message_latency(message.ptr()) };
    (latency >= 0).then_some(latency)
}

/// Whether librdkafka knows that a record which failed may nevertheless be in the log; that it does not is no proof, see `sent`.
pub(super) fn may_be_persisted(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is alive.
    let status = unsafe { sys::rd_kafka_message_status(message.ptr()) };
    status != sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_the_client_has_lost_are_known() {
        assert!(is_lost_by_client(None, None, None));
        // Other programs' records without a key, in the format of today.
        assert!(!is_lost_by_client(None, None, Some(0)));
        assert!(!is_lost_by_client(None, Some(b"v"), None));
        assert!(!is_lost_by_client(Some(b"k"), None, None));
    }
}
