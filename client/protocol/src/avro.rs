//! Avro's binary encoding, as far as the record and the RPC need it: Avro specification 1.11, "Binary Encoding".

/// Why bytes are not what they should be. The text in it names the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside the named field.
    #[error("the bytes end inside '{0}'")]
    Truncated(&'static str),
    /// A length is negative or too large, a number does not fit its type, or a branch or symbol does not exist.
    #[error("'{0}' holds a number out of range")]
    OutOfRange(&'static str),
    /// A string is not UTF-8.
    #[error("'{0}' is not UTF-8")]
    NotUtf8(&'static str),
    /// There are more bytes than there should be.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

#[inline]
pub(crate) fn put_long(out: &mut Vec<u8>, value: i64) {
    // Zigzag, then 7 bits a byte, the lowest first.
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[inline]
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_long(out, bytes.len().cast_signed() as i64);
    out.extend_from_slice(bytes);
}

#[inline]
pub(crate) fn put_string(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

#[inline]
pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(value.into());
}

/// Bytes that are taken from the front. Nothing here allocates by what a length says before the bytes are seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    #[inline]
    pub(crate) fn long(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        // Most numbers are lengths below 64.
        if let Some((&byte, rest)) = self.0.split_first()
            && byte < 0x80
        {
            self.0 = rest;
            return Ok(i64::from(byte >> 1) ^ -i64::from(byte & 1));
        }
        self.long_of_many(field)
    }

    fn long_of_many(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated(field))?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(DecodeError::OutOfRange(field))
    }

    #[inline]
    pub(crate) fn int(&mut self, field: &'static str) -> Result<i32, DecodeError> {
        self.long(field)?.try_into().map_err(|_| DecodeError::OutOfRange(field))
    }

    /// The index of a union's branch or an enum's symbol, below `count`.
    #[inline]
    pub(crate) fn index(&mut self, count: usize, field: &'static str) -> Result<usize, DecodeError> {
        let index = usize::try_from(self.long(field)?).map_err(|_| DecodeError::OutOfRange(field))?;
        if index < count { Ok(index) } else { Err(DecodeError::OutOfRange(field)) }
    }

    #[inline]
    pub(crate) fn boolean(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        match self.take(1, field)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(DecodeError::OutOfRange(field)),
        }
    }

    #[inline]
    pub(crate) fn take(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated(field))?;
        self.0 = rest;
        Ok(bytes)
    }

    #[inline]
    pub(crate) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.long(field)?;
        let length = usize::try_from(length).map_err(|_| DecodeError::OutOfRange(field))?;
        self.take(length, field)
    }

    #[inline]
    pub(crate) fn string(&mut self, field: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| DecodeError::NotUtf8(field))
    }

    /// The number of items in the next block of an array or map; 0 at its end.
    ///
    /// An item has at least one byte here, so a count above what is left is refused before anyone makes room for it.
    pub(crate) fn block(&mut self, field: &'static str) -> Result<usize, DecodeError> {
        let mut count = self.long(field)?;
        if count < 0 {
            // A negative count is followed by the block's size in bytes, for those who skip it.
            self.long(field)?;
            count = count.checked_neg().ok_or(DecodeError::OutOfRange(field))?;
        }
        match usize::try_from(count) {
            Ok(count) if count <= self.0.len() => Ok(count),
            Ok(_) => Err(DecodeError::Truncated(field)),
            Err(_) => Err(DecodeError::OutOfRange(field)),
        }
    }

    /// A `map<bytes>`, which is what metadata is, passed over.
    pub(crate) fn skip_metadata(&mut self) -> Result<(), DecodeError> {
        self.take_metadata("").map(drop)
    }

    /// Metadata, passed over but for the first value of this name.
    pub(crate) fn take_metadata(&mut self, wanted: &str) -> Result<Option<&'a [u8]>, DecodeError> {
        const FIELD: &str = "metadata";
        let mut found = None;
        loop {
            let count = self.block(FIELD)?;
            if count == 0 {
                return Ok(found);
            }
            for _ in 0..count {
                let (name, value) = (self.bytes(FIELD)?, self.bytes(FIELD)?);
                if found.is_none() && name == wanted.as_bytes() {
                    found = Some(value);
                }
            }
        }
    }

    pub(crate) fn end(&self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }
}
