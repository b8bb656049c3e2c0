//! Times in words.

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_PER_DAY: i64 = 86_400;

/// Now, as RFC 3339 with milliseconds in UTC.
pub(crate) fn now_rfc3339() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(i64::try_from(since.as_secs()).unwrap_or(0), since.subsec_nanos())
}

/// A moment given in seconds since 1970 and nanoseconds, as RFC 3339 with milliseconds in UTC.
pub(crate) fn rfc3339(seconds: i64, nanoseconds: u32) -> String {
    let (day, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil(day);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", nanoseconds / 1_000_000)
}

/// A moment as listings of directories have it, in UTC: with the time where it is of the last half year, else the year.
pub(crate) fn listing_date(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    listing_date_at(seconds, i64::try_from(now).unwrap_or(i64::MAX))
}

fn listing_date_at(seconds: i64, now: i64) -> String {
    const HALF_YEAR: i64 = 182 * SECONDS_PER_DAY;
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (day, second) = (seconds.div_euclid(SECONDS_PER_DAY), seconds.rem_euclid(SECONDS_PER_DAY));
    let (year, month, day) = civil(day);
    let month = usize::try_from(month - 1).ok().and_then(|at| MONTHS.get(at)).copied().unwrap_or_default();
    match now - HALF_YEAR <= seconds && seconds <= now {
        true => format!("{month} {day:>2} {:02}:{:02}", second / 3600, second / 60 % 60),
        false => format!("{month} {day:>2} {year:>5}"),
    }
}

/// Year, month and day of a day counted from 1970-01-01. Years are counted from March, so that leap days come last.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let era = day.div_euclid(146_097);
    let day_of_era = day.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year_of_era, month + 3) } else { (year_of_era + 1, month - 9) };
    (year + era * 400, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_listings() {
        assert_eq!(listing_date_at(951_782_400, 951_782_400), "Feb 29 00:00");
        assert_eq!(listing_date_at(951_782_400, 1_735_689_599), "Feb 29  2000");
        assert_eq!(listing_date_at(1_735_689_599, 951_782_400), "Dec 31  2024");
    }

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400, 5_000_000), "2000-02-29T00:00:00.005Z");
        assert_eq!(rfc3339(1_735_689_599, 999_999_999), "2024-12-31T23:59:59.999Z");
        assert_eq!(rfc3339(-1, 0), "1969-12-31T23:59:59.000Z");
    }
}
