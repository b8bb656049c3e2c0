//! Just enough of Rust's lexical rules to tell identifiers and strings from comments.

/// A piece of Rust source that the checks look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// An identifier or keyword.
    Word(String),
    /// The content of a string literal, escapes as written.
    Text(String),
    /// Any other visible character outside comments.
    Sign(char),
}

/// A token and the line it begins on, counted from one.
pub(crate) type Placed = (usize, Token);

/// Splits source text into tokens; comments and white space are dropped.
pub(crate) fn tokens(source: &str) -> Vec<Placed> {
    let mut lexer = Lexer { rest: source, line: 1 };
    let mut found = Vec::new();
    while !lexer.rest.is_empty() {
        let line = lexer.line;
        if let Some(token) = lexer.next_token() {
            found.push((line, token));
        }
    }
    found
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl Lexer<'_> {
    fn next_token(&mut self) -> Option<Token> {
        if self.rest.starts_with("//") {
            let end = self.rest.find('\n').unwrap_or(self.rest.len());
            self.take(end);
            return None;
        }
        if self.rest.starts_with("/*") {
            self.take(block_comment_end(self.rest));
            return None;
        }
        if let Some((open, hashes)) = raw_string_open(self.rest) {
            self.take(open);
            let close = format!("\"{}", "#".repeat(hashes));
            let end = self.rest.find(&close).unwrap_or(self.rest.len());
            let text = self.take(end);
            self.take(close.len().min(self.rest.len()));
            return Some(Token::Text(text));
        }
        let quoted = ["\"", "b\"", "c\""].into_iter().find(|open| self.rest.starts_with(open));
        if let Some(open) = quoted {
            self.take(open.len());
            let text = self.take(quote_end(self.rest, '"'));
            self.take(1.min(self.rest.len()));
            return Some(Token::Text(text));
        }
        if let Some(end) = character_end(self.rest) {
            self.take(end);
            return None;
        }
        let first = self.rest.chars().next()?;
        if first == '_' || first.is_alphabetic() {
            let end = self.rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(self.rest.len());
            return Some(Token::Word(self.take(end)));
        }
        self.take(first.len_utf8());
        (!first.is_whitespace()).then_some(Token::Sign(first))
    }

    fn take(&mut self, bytes: usize) -> String {
        let (taken, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        self.line += taken.matches('\n').count();
        taken.to_owned()
    }
}

/// Block comments nest.
fn block_comment_end(text: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < text.len() {
        let here = &text[at..];
        if here.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if here.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// Length of `r#"` and its like at the start of `text`, and how many hashes it has.
fn raw_string_open(text: &str) -> Option<(usize, usize)> {
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| text.starts_with(prefix))?;
    let after = &text[prefix.len()..];
    let hashes = after.bytes().take_while(|byte| *byte == b'#').count();
    after[hashes..].starts_with('"').then_some((prefix.len() + hashes + 1, hashes))
}

/// Offset of the closing quote.
fn quote_end(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal at the start of `text`; a lifetime is none.
fn character_end(text: &str) -> Option<usize> {
    let quoted = text.strip_prefix('\'')?;
    let mut characters = quoted.chars();
    match characters.next()? {
        '\\' => Some(quote_end(quoted, '\'') + 2),
        first => (characters.next() == Some('\'')).then_some(first.len_utf8() + 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(source: &str) -> Vec<String> {
        tokens(source)
            .into_iter()
            .filter_map(|(_, token)| match token {
                Token::Word(word) => Some(word),
                Token::Text(_) | Token::Sign(_) => None,
            })
            .collect()
    }

    #[test]
    fn comments_strings_characters_and_lifetimes_are_told_apart() {
        let source = r###"
            // one
            /* two /* three */ four */
            fn five<'six>(seven: &'six str) { '\''; 'x'; '"'; "eight \" nine"; r#"ten " eleven"#; twelve }
        "###;
        assert_eq!(words(source), ["fn", "five", "six", "seven", "six", "str", "twelve"]);
        let texts: Vec<_> = tokens(source)
            .into_iter()
            .filter_map(|(line, token)| match token {
                Token::Text(text) => Some((line, text)),
                Token::Word(_) | Token::Sign(_) => None,
            })
            .collect();
        assert_eq!(texts, [(4, "eight \\\" nine".to_owned()), (4, "ten \" eleven".to_owned())]);
    }

    #[test]
    fn unfinished_source_ends_the_walk() {
        for source in ["\"open", "r#\"open", "/* open", "'", "// open", "b\"\\"] {
            tokens(source);
        }
    }
}
