//! Enough JSON for config.json and the head of a safetensors file.

use crate::error::{error, Error, Result};

/// How deep lists and objects may be nested.
const DEPTH: usize = 32;

/// One JSON value; an object keeps its order and has no name twice.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// Any number; all are finite.
    Number(f64),
    /// A string without its escapes.
    Text(String),
    /// `[…]`
    List(Vec<Json>),
    /// `{…}`
    Object(Vec<(String, Json)>),
}

impl Json {
    /// Read one value and nothing after it.
    pub fn parse(text: &str) -> Result<Json> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_space();
        if reader.at < text.len() {
            return reader.fail("more text after the end");
        }
        Ok(value)
    }

    /// The value under a name; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&Json> {
        let pairs = match self {
            Json::Object(pairs) => pairs,
            _ => return None,
        };
        let found = pairs.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value).filter(|x| **x != Json::Null)
    }

    /// A whole number that a size or an offset can be.
    pub fn whole(&self) -> Option<usize> {
        // Beyond 2^53 a double no longer holds every whole number.
        match self.number() {
            Some(x) if (0.0..=9e15).contains(&x) && x.fract() == 0.0 => {
                Some(x as usize)
            }
            _ => None,
        }
    }

    /// A number.
    pub fn number(&self) -> Option<f64> {
        match self {
            Json::Number(x) => Some(*x),
            _ => None,
        }
    }

    /// A string.
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(x) => Some(x),
            _ => None,
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn fail<T>(&self, what: &str) -> Result<T> {
        error(format!("bad JSON at byte {}: {what}", self.at))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Pass a byte if it comes next.
    fn eat(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json> {
        if depth > DEPTH {
            return self.fail("nested too deeply");
        }
        self.skip_space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Json::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Json> {
        let words = [
            ("null", Json::Null),
            ("true", Json::Bool(true)),
            ("false", Json::Bool(false)),
        ];
        for (word, value) in words {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        self.fail("no value")
    }

    fn number(&mut self) -> Result<Json> {
        let rest = &self.text[self.at..];
        let inside = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
        let end = rest.find(|c| !inside(c)).unwrap_or(rest.len());
        match rest[..end].parse::<f64>() {
            Ok(x) if x.is_finite() => {
                self.at += end;
                Ok(Json::Number(x))
            }
            _ => self.fail("no finite number"),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Json> {
        let mut items = Vec::new();
        self.at += 1;
        if self.eat(b']') {
            return Ok(Json::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.eat(b']') {
                return Ok(Json::List(items));
            }
            if !self.eat(b',') {
                return self.fail("a list needs ',' or ']'");
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Json> {
        let mut pairs = Vec::new();
        self.at += 1;
        if self.eat(b'}') {
            return Ok(Json::Object(pairs));
        }
        loop {
            self.skip_space();
            let name = self.string()?;
            if !self.eat(b':') {
                return self.fail("a name needs ':'");
            }
            pairs.push((name, self.value(depth + 1)?));
            if self.eat(b'}') {
                return unique(pairs);
            }
            if !self.eat(b',') {
                return self.fail("an object needs ',' or '}'");
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        if self.peek() != Some(b'"') {
            return self.fail("a string begins with '\"'");
        }
        self.at += 1;
        let mut out = String::new();
        loop {
            let next = self.text[self.at..].chars().next();
            self.at += next.map_or(0, char::len_utf8);
            match next {
                None => return self.fail("a string has no end"),
                Some('"') => return Ok(out),
                Some('\\') => out.push(self.escape()?),
                Some('\0'..='\x1f') => {
                    return self.fail("a bare control character")
                }
                Some(c) => out.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let kind = self.peek();
        self.at += 1;
        Ok(match kind {
            Some(c @ (b'"' | b'\\' | b'/')) => c as char,
            Some(b'b') => '\x08',
            Some(b'f') => '\x0c',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => {
                self.at -= 1;
                return self.fail("an unknown escape");
            }
        })
    }

    /// `\uXXXX`, or two of them for what lies beyond 16 bits.
    fn unicode(&mut self) -> Result<char> {
        let mut code = self.hex()?;
        let high = (0xD800..0xDC00).contains(&code);
        if high && self.text[self.at..].starts_with("\\u") {
            self.at += 2;
            let low = self.hex()?.wrapping_sub(0xDC00);
            code = 0x10000 + ((code - 0xD800) << 10) + (low & 0x3FF);
            if low > 0x3FF {
                return self.fail("half a surrogate pair");
            }
        }
        match char::from_u32(code) {
            Some(c) => Ok(c),
            None => self.fail("half a surrogate pair"),
        }
    }

    fn hex(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4).unwrap_or("");
        let plain = digits.bytes().all(|x| x.is_ascii_hexdigit());
        match u32::from_str_radix(digits, 16) {
            Ok(code) if plain => {
                self.at += 4;
                Ok(code)
            }
            _ => self.fail("four hexadecimal digits are needed"),
        }
    }
}

fn unique(pairs: Vec<(String, Json)>) -> Result<Json> {
    let mut names: Vec<&str> = pairs.iter().map(|x| x.0.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|two| two[0] == two[1]) {
        Some(two) => Err(Error(format!("{:?} appears twice", two[0]))),
        None => Ok(Json::Object(pairs)),
    }
}
