//! What a scalar is: the core schema of YAML 1.2 (section 10.3).

use std::borrow::Cow;

use granit_parser::{ScalarStyle, Tag};

use super::Value;

/// The value of a scalar, or what is wrong with its tag.
pub(super) fn resolve<'t>(text: Cow<'t, str>, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value<'t>, String> {
    let Some(tag) = tag else {
        return Ok(if style == ScalarStyle::Plain { plain(text) } else { Value::String(text) });
    };
    if tag.original() == "!" {
        return Ok(Value::String(text));
    }
    let value = match (tag.core_suffix(), plain(text.clone())) {
        (Some("str"), _) => Value::String(text),
        (Some("null"), Value::Null) => Value::Null,
        (Some("bool"), value @ Value::Bool(_)) => value,
        (Some("int"), value @ Value::Integer(_)) | (Some("float"), value @ Value::Float(_)) => value,
        (Some("float"), Value::Integer(number)) => Value::Float(number as f64),
        (Some(_), _) => {
            return Err(format!("the value is not what its tag {} says; remove one of them", tag.original()));
        }
        (None, _) => return Err(foreign(tag)),
    };
    Ok(value)
}

/// Why a tag is not one of YAML's own.
pub(super) fn foreign(tag: &Tag) -> String {
    format!("the tag {} means nothing here; remove it", tag.original())
}

/// What is written without quotes. As in YAML 1.2, `yes` and `off` are text.
fn plain(text: Cow<'_, str>) -> Value<'_> {
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) => Value::String(text),
        number => match (integer(number), float(number)) {
            (Some(integer), _) => Value::Integer(integer),
            (None, Some(float)) => Value::Float(float),
            (None, None) => Value::String(text),
        },
    }
}

fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.as_bytes()[0] {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        // YAML 1.1 takes such a number for an octal one, YAML 1.2 does not: it is not used as a whole number at all.
        _ if digits.len() > 1 && digits.starts_with('0') => return None,
        _ => (10, digits),
    };
    let is_number = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    is_number.then(|| i128::from_str_radix(digits, radix).ok()).flatten().map(|number| sign * number)
}

fn float(text: &str) -> Option<f64> {
    let (sign, number) = match text.strip_prefix('-') {
        Some(number) => (-1.0, number),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match number {
        ".inf" | ".Inf" | ".INF" => Some(sign * f64::INFINITY),
        ".nan" | ".NaN" | ".NAN" => Some(f64::NAN),
        // Rust also reads words.
        _ if number.bytes().all(|byte| byte.is_ascii_digit() || b".eE+-".contains(&byte)) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        format!("{:?}", plain(Cow::Borrowed(text)))
    }

    #[test]
    fn plain_scalars() {
        for (text, expected) in [
            ("", "Null"),
            ("~", "Null"),
            ("null", "Null"),
            ("nUll", "String(\"nUll\")"),
            ("True", "Bool(true)"),
            ("false", "Bool(false)"),
            ("yes", "String(\"yes\")"),
            ("0", "Integer(0)"),
            ("+80", "Integer(80)"),
            ("-1", "Integer(-1)"),
            ("0x1F4", "Integer(500)"),
            ("0o17", "Integer(15)"),
            ("0x", "String(\"0x\")"),
            ("0x+1", "String(\"0x+1\")"),
            ("0b1", "String(\"0b1\")"),
            ("1_000", "String(\"1_000\")"),
            ("0127", "Float(127.0)"),
            ("1.5", "Float(1.5)"),
            (".5", "Float(0.5)"),
            ("-1e3", "Float(-1000.0)"),
            ("-.inf", "Float(-inf)"),
            ("1e999", "Float(inf)"),
            (".nan", "Float(NaN)"),
            ("+inf", "String(\"+inf\")"),
            ("-", "String(\"-\")"),
            ("-ä", "String(\"-ä\")"),
            ("1.2.3.4", "String(\"1.2.3.4\")"),
            ("10s", "String(\"10s\")"),
            (&"9".repeat(40), "Float(1e40)"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
