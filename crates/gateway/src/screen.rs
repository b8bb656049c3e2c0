//! One picture of a sandbox's display: a client of RFB 3.8 that asks for the whole screen once, and a PNG of what came.
//!
//! ```text
//!   version ⇄ version      security types → none → result      init ⇄ size, pixel format, name
//!   pixel format, encodings, request →      ← updates, until every pixel has come once
//! ```
//!
//! The other side is inside or beside a sandbox, so nothing that it says is trusted: sizes are bounded before anything of
//! them is allocated, and the whole has a time limit.

use std::{io, time::Duration};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long a picture may take.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Most pixels of a display.
const PIXELS_MAX: usize = 16 << 20;

/// Longest text that the other side may send along: its name, its clipboard, a reason.
const TEXT_BYTES_MAX: u32 = 1 << 20;

/// Most updates that one picture may come in.
const UPDATES_MAX: usize = 4096;

/// What both sides speak.
const VERSION: &[u8; 12] = b"RFB 003.008\n";

/// The kind of security that asks for nothing.
const SECURITY_NONE: u8 = 1;

/// Kinds of messages to the other side.
const SET_PIXEL_FORMAT: u8 = 0;
const SET_ENCODINGS: u8 = 2;
const UPDATE_REQUEST: u8 = 3;

/// Kinds of messages from the other side.
const UPDATE: u8 = 0;
const COLOUR_MAP: u8 = 1;
const BELL: u8 = 2;
const CUT_TEXT: u8 = 3;

/// Pixels as they are, row by row.
const ENCODING_RAW: i32 = 0;

/// Bytes of a pixel on the way: blue, green, red, nothing.
const PIXEL_BYTES: usize = 4;

/// Bytes of a pixel in the picture.
const COLOURS: usize = 3;

/// Why there is no picture.
#[derive(Debug)]
pub(crate) enum ScreenError {
    /// The display does not answer, or not in time.
    Silent(io::Error),
    /// It says something that makes no sense, or asks for more than this.
    Odd(String),
}

type Result<T> = std::result::Result<T, ScreenError>;

impl From<io::Error> for ScreenError {
    fn from(error: io::Error) -> Self {
        Self::Silent(error)
    }
}

/// What a display shows, as a PNG.
pub(crate) async fn screenshot(stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Vec<u8>> {
    let picture = tokio::time::timeout(TIME_MAX, look(stream))
        .await
        .map_err(|_| ScreenError::Silent(io::ErrorKind::TimedOut.into()))??;
    // Compression takes a while; others are served meanwhile.
    let encoded = tokio::task::spawn_blocking(move || picture.encode()).await;
    encoded.map_err(|error| ScreenError::Odd(error.to_string()))?
}

struct Picture {
    width: u16,
    height: u16,
    /// Red, green and blue of each pixel, row by row.
    pixels: Vec<u8>,
    /// Which pixels have come.
    seen: Vec<bool>,
    missing: usize,
}

impl Picture {
    fn new(width: u16, height: u16) -> Result<Self> {
        let count = usize::from(width) * usize::from(height);
        if count == 0 || count > PIXELS_MAX {
            return Err(ScreenError::Odd(format!("its size is {width} × {height}")));
        }
        Ok(Self { width, height, pixels: vec![0; count * COLOURS], seen: vec![false; count], missing: count })
    }

    /// Takes a row of a rectangle in.
    fn put(&mut self, x: u16, y: u16, row: &[u8]) {
        let begin = usize::from(y) * usize::from(self.width) + usize::from(x);
        for (at, pixel) in (begin..).zip(row.chunks_exact(PIXEL_BYTES)) {
            let colours = &mut self.pixels[at * COLOURS..][..COLOURS];
            colours.copy_from_slice(&[pixel[2], pixel[1], pixel[0]]);
            if !std::mem::replace(&mut self.seen[at], true) {
                self.missing -= 1;
            }
        }
    }

    fn encode(&self) -> Result<Vec<u8>> {
        let odd = |error: png::EncodingError| ScreenError::Odd(error.to_string());
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, self.width.into(), self.height.into());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header().map_err(odd)?;
        writer.write_image_data(&self.pixels).map_err(odd)?;
        writer.finish().map_err(odd)?;
        Ok(file)
    }
}

async fn look(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Picture> {
    let (width, height) = shake_hands(&mut stream).await?;
    let mut picture = Picture::new(width, height)?;
    stream.write_all(&pixel_format()).await?;
    stream.write_all(&[SET_ENCODINGS, 0, 0, 1]).await?;
    stream.write_all(&ENCODING_RAW.to_be_bytes()).await?;
    stream.write_all(&update_request(Which::All, width, height)).await?;
    for _ in 0..UPDATES_MAX {
        if take_message(&mut stream, &mut picture).await? == Message::Update {
            if picture.missing == 0 {
                return Ok(picture);
            }
            stream.write_all(&update_request(Which::Changed, width, height)).await?;
        }
    }
    Err(ScreenError::Odd("its picture never becomes whole".to_owned()))
}

/// Agrees on version and security, and learns the size.
async fn shake_hands(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(u16, u16)> {
    let mut version = [0; VERSION.len()];
    stream.read_exact(&mut version).await?;
    if version != *VERSION {
        return Err(ScreenError::Odd("it does not speak RFB 3.8".to_owned()));
    }
    stream.write_all(VERSION).await?;
    let kinds = stream.read_u8().await?;
    if kinds == 0 {
        return Err(refusal(stream).await?);
    }
    let mut offered = vec![0; kinds.into()];
    stream.read_exact(&mut offered).await?;
    if !offered.contains(&SECURITY_NONE) {
        return Err(ScreenError::Odd("it wants a password".to_owned()));
    }
    stream.write_all(&[SECURITY_NONE]).await?;
    if stream.read_u32().await? != 0 {
        return Err(refusal(stream).await?);
    }
    let shared = 1;
    stream.write_all(&[shared]).await?;
    let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
    let mut its_format = [0; 16];
    stream.read_exact(&mut its_format).await?;
    skip_text(stream).await?;
    Ok((width, height))
}

async fn refusal(stream: &mut (impl AsyncRead + Unpin)) -> Result<ScreenError> {
    let length = text_length(stream).await?;
    let mut reason = vec![0; length];
    stream.read_exact(&mut reason).await?;
    Ok(ScreenError::Odd(format!("it refuses: {}", String::from_utf8_lossy(&reason))))
}

/// 32 bits a pixel, little-endian, eight bits a colour: blue first.
fn pixel_format() -> [u8; 20] {
    let (bits, depth, big_endian, true_colour) = (32, 24, 0, 1);
    let (red_shift, green_shift, blue_shift) = (16, 8, 0);
    [
        SET_PIXEL_FORMAT,
        0,
        0,
        0,
        bits,
        depth,
        big_endian,
        true_colour,
        0,
        255,
        0,
        255,
        0,
        255,
        red_shift,
        green_shift,
        blue_shift,
        0,
        0,
        0,
    ]
}

enum Which {
    All,
    Changed,
}

fn update_request(which: Which, width: u16, height: u16) -> [u8; 10] {
    let [wide, narrow] = width.to_be_bytes();
    let [high, low] = height.to_be_bytes();
    let incremental = match which {
        Which::All => 0,
        Which::Changed => 1,
    };
    [UPDATE_REQUEST, incremental, 0, 0, 0, 0, wide, narrow, high, low]
}

#[derive(PartialEq, Eq)]
enum Message {
    Update,
    Other,
}

async fn take_message(stream: &mut (impl AsyncRead + Unpin), picture: &mut Picture) -> Result<Message> {
    match stream.read_u8().await? {
        UPDATE => {
            stream.read_u8().await?;
            for _ in 0..stream.read_u16().await? {
                take_rectangle(stream, picture).await?;
            }
            return Ok(Message::Update);
        }
        COLOUR_MAP => {
            skip(stream, 3).await?;
            let colours = stream.read_u16().await?;
            skip(stream, usize::from(colours) * 6).await?;
        }
        BELL => {}
        CUT_TEXT => {
            skip(stream, 3).await?;
            skip_text(stream).await?;
        }
        kind => return Err(ScreenError::Odd(format!("it sends a message of kind {kind}"))),
    }
    Ok(Message::Other)
}

async fn take_rectangle(stream: &mut (impl AsyncRead + Unpin), picture: &mut Picture) -> Result<()> {
    let (x, y) = (stream.read_u16().await?, stream.read_u16().await?);
    let (width, height) = (stream.read_u16().await?, stream.read_u16().await?);
    let encoding = stream.read_i32().await?;
    if encoding != ENCODING_RAW {
        return Err(ScreenError::Odd(format!("it sends pixels in encoding {encoding}")));
    }
    let fits = |at: u16, length: u16, side: u16| at.checked_add(length).is_some_and(|end| end <= side);
    if !fits(x, width, picture.width) || !fits(y, height, picture.height) {
        return Err(ScreenError::Odd("it sends pixels beyond its screen".to_owned()));
    }
    let mut row = vec![0; usize::from(width) * PIXEL_BYTES];
    for line in 0..height {
        stream.read_exact(&mut row).await?;
        picture.put(x, y + line, &row);
    }
    Ok(())
}

async fn text_length(stream: &mut (impl AsyncRead + Unpin)) -> Result<usize> {
    let length = stream.read_u32().await?;
    if length > TEXT_BYTES_MAX {
        return Err(ScreenError::Odd(format!("it sends a text of {length} bytes")));
    }
    Ok(usize::try_from(length).unwrap_or(usize::MAX))
}

async fn skip_text(stream: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let length = text_length(stream).await?;
    skip(stream, length).await
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), bytes: usize) -> Result<()> {
    let mut scratch = vec![0; bytes];
    stream.read_exact(&mut scratch).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::DuplexStream;

    use super::*;

    /// A display of 3 × 2 pixels that shows `rectangles`, each with its pixels.
    async fn display(mut stream: DuplexStream, updates: Vec<Vec<([u16; 4], Vec<u8>)>>) -> io::Result<()> {
        stream.write_all(VERSION).await?;
        let mut version = [0; 12];
        stream.read_exact(&mut version).await?;
        stream.write_all(&[2, 2, SECURITY_NONE]).await?;
        assert_eq!(stream.read_u8().await?, SECURITY_NONE);
        stream.write_u32(0).await?;
        stream.read_u8().await?;
        stream.write_all(&[0, 3, 0, 2]).await?;
        stream.write_all(&[0; 16]).await?;
        stream.write_all(&[0, 0, 0, 1, b'x']).await?;
        let mut settings = [0; 20 + 8];
        stream.read_exact(&mut settings).await?;
        stream.write_all(&[BELL, COLOUR_MAP, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6]).await?;
        for (index, update) in updates.into_iter().enumerate() {
            let mut request = [0; 10];
            stream.read_exact(&mut request).await?;
            assert_eq!(usize::from(request[1]), index.min(1), "all is asked for once");
            stream.write_all(&[UPDATE, 0, 0, u8::try_from(update.len()).unwrap()]).await?;
            for (place, pixels) in update {
                for number in place {
                    stream.write_u16(number).await?;
                }
                stream.write_i32(ENCODING_RAW).await?;
                stream.write_all(&pixels).await?;
            }
        }
        // Held open until the other side goes.
        stream.read_u8().await.map(drop)
    }

    fn decoded(file: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(io::Cursor::new(file)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let frame = reader.next_frame(&mut pixels).unwrap();
        (frame.width, frame.height, pixels)
    }

    #[tokio::test]
    async fn a_picture_may_come_in_pieces() {
        let (near, far) = tokio::io::duplex(64);
        let pixel = |value: u8| [value, value + 1, value + 2, 9];
        let first = vec![([0, 0, 3, 1], [pixel(10), pixel(20), pixel(30)].concat())];
        let second =
            vec![([0, 1, 2, 1], [pixel(40), pixel(50)].concat()), ([2, 1, 1, 1], pixel(60).to_vec())];
        tokio::spawn(display(far, vec![first, second]));
        let (width, height, pixels) = decoded(&screenshot(near).await.unwrap());
        assert_eq!((width, height), (3, 2));
        let expected: Vec<u8> =
            [10, 20, 30, 40, 50, 60].iter().flat_map(|value| [value + 2, value + 1, *value]).collect();
        assert_eq!(pixels, expected);
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let odd = |bytes: &'static [u8]| async move {
            let (near, mut far) = tokio::io::duplex(4096);
            far.write_all(bytes).await.unwrap();
            match screenshot(near).await {
                Err(ScreenError::Odd(words)) => words,
                other => panic!("{other:?}"),
            }
        };
        assert!(odd(b"SSH-2.0-odd\r\n").await.contains("RFB 3.8"));
        assert!(odd(b"RFB 003.008\n\x01\x02").await.contains("password"));
        assert!(odd(b"RFB 003.008\n\x00\x00\x00\x00\x02no").await.contains("no"));
        assert!(odd(b"RFB 003.008\n\x00\xff\xff\xff\xff").await.contains("4294967295"));
        let begun = *b"RFB 003.008\n\x01\x01\x00\x00\x00\x00\xff\xff\xff\xff\
            \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
        assert!(odd(Box::leak(Box::new(begun))).await.contains("65535"));
        let outside = vec![vec![([2, 0, 2, 1], Vec::new())]];
        let (near, far) = tokio::io::duplex(4096);
        tokio::spawn(display(far, outside));
        assert!(matches!(screenshot(near).await, Err(ScreenError::Odd(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_display_that_says_nothing_is_not_waited_for() {
        let (near, _far) = tokio::io::duplex(4096);
        assert!(matches!(screenshot(near).await, Err(ScreenError::Silent(_))));
    }
}
