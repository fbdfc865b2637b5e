//! Answers of name servers, remembered for as long as they say.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;

use crate::{answer::ttl, query::Answer};

/// An answer with more records is not worth its memory.
const MAX_RECORDS: usize = 32;

/// Nor is one whose data is longer, in bytes as the server sent it.
const MAX_BYTES: usize = 4096;

type Key = (String, RecordType);

#[derive(Debug)]
struct Entry {
    answer: Answer,
    stored: Instant,
    lives: Duration,
    /// Which entry of the queue is this one's: an answer that was replaced leaves its old place behind.
    serial: u64,
}

/// A bounded map; the oldest entries make room.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// Keys in the order they were stored.
    order: VecDeque<(u64, Key)>,
    capacity: usize,
    serial: u64,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
            capacity,
            serial: 0,
        }
    }

    /// The answer as it is at `now`: its times are shorter by its age.
    pub(crate) fn get(&self, name: &str, kind: RecordType, now: Instant) -> Option<Answer> {
        let entry = self.entries.get(&(name.to_owned(), kind))?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lives {
            return None;
        }
        let seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authority) {
            record.set_ttl(record.ttl().saturating_sub(seconds));
        }
        Some(answer)
    }

    /// Remembers an answer that came in `bytes` bytes, if it may be remembered.
    pub(crate) fn put(
        &mut self,
        name: &str,
        kind: RecordType,
        answer: &Answer,
        bytes: usize,
        now: Instant,
    ) {
        let lives = ttl(answer);
        let records = answer.answers.len() + answer.authority.len();
        if lives == 0 || records > MAX_RECORDS || bytes > MAX_BYTES || self.capacity == 0 {
            return;
        }
        let key = (name.to_owned(), kind);
        self.serial += 1;
        self.order.push_back((self.serial, key.clone()));
        self.entries.insert(
            key,
            Entry {
                answer: answer.clone(),
                stored: now,
                lives: Duration::from_secs(lives.into()),
                serial: self.serial,
            },
        );
        // The queue is bounded as well as the map: one name asked again and again only grows the queue.
        while self.entries.len() > self.capacity || self.order.len() > 2 * self.capacity {
            let Some((serial, key)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&key).is_some_and(|e| e.serial == serial) {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::{Name, RData, Record, rdata};

    fn answer(ttl: u32) -> Answer {
        let name = Name::from_ascii("a.example.").unwrap();
        Answer::records(vec![Record::from_rdata(
            name,
            ttl,
            RData::A(rdata::A::new(192, 0, 2, 1)),
        )])
    }

    #[test]
    fn answers_age_and_end() {
        let mut cache = Cache::new(4);
        let start = Instant::now();
        cache.put("a.example", RecordType::A, &answer(30), 100, start);
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(
            cache.get("a.example", RecordType::A, at(10)),
            Some(answer(20))
        );
        assert_eq!(cache.get("a.example", RecordType::A, at(30)), None);
        assert_eq!(cache.get("a.example", RecordType::MX, at(0)), None);
        assert_eq!(cache.get("b.example", RecordType::A, at(0)), None);
    }

    #[test]
    fn it_stays_bounded() {
        let mut cache = Cache::new(4);
        let now = Instant::now();
        for i in 0..100 {
            cache.put(
                &format!("{i}.example"),
                RecordType::A,
                &answer(30),
                100,
                now,
            );
            cache.put("again.example", RecordType::A, &answer(30), 100, now);
            assert!(cache.entries.len() <= 4 && cache.order.len() <= 8);
        }
        assert!(cache.get("again.example", RecordType::A, now).is_some());
        assert!(cache.get("99.example", RecordType::A, now).is_some());
        assert!(cache.get("1.example", RecordType::A, now).is_none());
    }

    #[test]
    fn what_is_too_large_or_too_short_lived_is_not_kept() {
        let mut cache = Cache::new(4);
        let now = Instant::now();
        cache.put("a.example", RecordType::A, &answer(0), 100, now);
        cache.put("a.example", RecordType::A, &answer(30), 5000, now);
        let record = answer(30).answers.remove(0);
        cache.put(
            "a.example",
            RecordType::A,
            &Answer::records(vec![record; 40]),
            100,
            now,
        );
        assert!(cache.entries.is_empty());
    }
}
