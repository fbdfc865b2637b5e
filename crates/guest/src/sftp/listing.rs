//! A file as `ls -l` shows it: what clients print when they are asked for details.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

use crate::users::Names;

/// Half a year, in seconds: what is older shows its year.
const RECENT: i64 = 182 * 86_400;
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// One line.
pub(super) fn line(name: &[u8], meta: &Metadata, names: &Names, now: i64) -> Vec<u8> {
    let mut line = format!(
        "{} {:>3} {:<8} {:<8} {:>8} {} ",
        mode(meta.mode()),
        meta.nlink(),
        names.user(meta.uid()),
        names.group(meta.gid()),
        meta.size(),
        date(meta.mtime(), now),
    )
    .into_bytes();
    line.extend_from_slice(name);
    line
}

fn mode(mode: u32) -> String {
    let kind = match mode & 0o170_000 {
        0o040_000 => 'd',
        0o120_000 => 'l',
        0o020_000 => 'c',
        0o060_000 => 'b',
        0o010_000 => 'p',
        0o140_000 => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// In UTC: a machine's own time zone would have to be read from its files.
fn date(time: i64, now: i64) -> String {
    let (day, second) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let (year, month, day) = civil(day);
    let month = MONTHS[month.clamp(1, 12) - 1];
    match (now - RECENT..=now + 86_400).contains(&time) {
        true => format!(
            "{month} {day:>2} {:02}:{:02}",
            second / 3600,
            second / 60 % 60
        ),
        false => format!("{month} {day:>2}  {year}"),
    }
}

/// Year, month and day of a day counted from 1970, by the calendar's 400 years that repeat.
fn civil(day: i64) -> (i64, usize, i64) {
    const CYCLE: i64 = 146_097;
    let (mut day, mut year) = (day.rem_euclid(CYCLE), 1970 + 400 * day.div_euclid(CYCLE));
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    loop {
        let days = if is_leap(year) { 366 } else { 365 };
        if day < days {
            break;
        }
        day -= days;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_modes_look_as_ls_shows_them() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(-1), (1969, 12, 31));
        assert_eq!(civil(20_781), (2026, 11, 24));
        assert_eq!(date(951_782_400, 951_782_400), "Feb 29 00:00");
        assert_eq!(date(951_782_400, 1_700_000_000), "Feb 29  2000");
        assert_eq!(mode(0o100_644), "-rw-r--r--");
        assert_eq!(mode(0o041_777), "drwxrwxrwt");
        assert_eq!(mode(0o104_644), "-rwSr--r--");
    }
}
