//! Two small texts, line by line.

/// Above this many pairs of lines no alignment is looked for: all old lines go, all new ones come.
const MAX_PAIRS: usize = 1 << 20;

/// A line that is only in one of the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// The lines that follow begin at this one of the first text, counted from one.
    At(usize),
    Gone(&'a str),
    Come(&'a str),
}

/// What to take out of `a` and put in to get `b`.
pub(super) fn lines<'a>(a: &'a str, b: &'a str) -> Vec<Line<'a>> {
    let (a, b): (Vec<_>, Vec<_>) = (a.split('\n').collect(), b.split('\n').collect());
    let alike = |(x, y): &(&&str, &&str)| x == y;
    let head = a.iter().zip(&b).take_while(alike).count();
    let (mid_a, mid_b) = (&a[head..], &b[head..]);
    let tail = mid_a.iter().rev().zip(mid_b.iter().rev());
    let tail = tail.take_while(alike).count();
    let (mid_a, mid_b) = (&mid_a[..mid_a.len() - tail], &mid_b[..mid_b.len() - tail]);
    let common = Common::of(mid_a, mid_b);
    let mut told = Vec::new();
    let (mut i, mut j, mut apart) = (0, 0, false);
    while i < mid_a.len() || j < mid_b.len() {
        if i < mid_a.len() && j < mid_b.len() && mid_a[i] == mid_b[j] {
            (i, j, apart) = (i + 1, j + 1, false);
            continue;
        }
        if !apart {
            told.push(Line::At(head + i + 1));
            apart = true;
        }
        if i < mid_a.len() && (j == mid_b.len() || common.at(i + 1, j) >= common.at(i, j + 1)) {
            told.push(Line::Gone(mid_a[i]));
            i += 1;
        } else {
            told.push(Line::Come(mid_b[j]));
            j += 1;
        }
    }
    told
}

/// How many lines the rests of two texts have in common, in order, from each pair of places.
struct Common {
    width: usize,
    counts: Vec<u32>,
}

impl Common {
    fn of(a: &[&str], b: &[&str]) -> Self {
        let width = b.len() + 1;
        let mut counts = Vec::new();
        if a.len().saturating_mul(b.len()) <= MAX_PAIRS {
            counts = vec![0; (a.len() + 1) * width];
            for i in (0..a.len()).rev() {
                for j in (0..b.len()).rev() {
                    counts[i * width + j] = if a[i] == b[j] {
                        counts[(i + 1) * width + j + 1] + 1
                    } else {
                        counts[(i + 1) * width + j].max(counts[i * width + j + 1])
                    };
                }
            }
        }
        Self { width, counts }
    }

    fn at(&self, i: usize, j: usize) -> u32 {
        self.counts.get(i * self.width + j).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Line::{At, Come, Gone};

    #[test]
    fn only_lines_that_differ_are_told() {
        assert_eq!(lines("a\nb\nc\n", "a\nb\nc\n"), []);
        assert_eq!(
            lines("a\nb\nc\n", "a\nx\nc\n"),
            [At(2), Gone("b"), Come("x")]
        );
        assert_eq!(
            lines("a\nb\nc\nd\ne", "a\nc\nd\nx\ne"),
            [At(2), Gone("b"), At(5), Come("x")]
        );
        assert_eq!(lines("a", "a\n"), [At(2), Come("")]);
        assert_eq!(lines("", "a"), [At(1), Gone(""), Come("a")]);
    }

    #[test]
    fn long_texts_are_not_aligned() {
        let text = |word: &str| {
            let numbered: Vec<_> = (0..1100).map(|n| format!("{word} {n}")).collect();
            numbered.join("\n")
        };
        let (a, b) = (text("a"), text("b"));
        let told = lines(&a, &b);
        assert_eq!(told.len(), 2201);
        assert_eq!(told[1], Gone("a 0"));
        assert_eq!(told[2200], Come("b 1099"));
    }
}
