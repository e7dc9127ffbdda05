//! CRC-64/XZ: the check on bulk data (ECMA-182 polynomial, reflected).

const POLY: u64 = 0xc96c_5795_d787_0f42;
static TABLES: [[u64; 256]; 8] = tables();

/// A running checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc64 {
    /// Adds octets; eight at a time (slicing-by-8).
    pub fn add(&mut self, bytes: &[u8]) {
        let mut crc = self.0;
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let [a, b, c, d, e, f, g, h] = (crc ^ u64::from_le_bytes(*word)).to_le_bytes();
            // Written out: the loads do not depend on each other.
            crc = TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(e)]
                ^ TABLES[2][usize::from(f)]
                ^ TABLES[1][usize::from(g)]
                ^ TABLES[0][usize::from(h)];
        }
        for &b in rest {
            crc = TABLES[0][usize::from(crc as u8 ^ b)] ^ (crc >> 8);
        }
        self.0 = crc;
    }

    /// The checksum of what was added.
    pub fn value(self) -> u64 {
        !self.0
    }
}

const fn tables() -> [[u64; 256]; 8] {
    let mut t = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLY } else { crc >> 1 };
            bit += 1;
        }
        t[0][i] = crc;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut i = 0;
        while i < 256 {
            let before = t[k - 1][i];
            t[k][i] = t[0][(before & 0xff) as usize] ^ (before >> 8);
            i += 1;
        }
        k += 1;
    }
    t
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_value_of_the_catalogue() {
        let mut crc = Crc64::default();
        crc.add(b"123456789");
        assert_eq!(crc.value(), 0x995d_c9bb_df19_39fa);
    }

    #[test]
    fn cutting_the_data_does_not_matter() {
        let data: Vec<u8> = (0..1000u32).map(|i| (i * 7) as u8).collect();
        let mut whole = Crc64::default();
        whole.add(&data);
        let mut parts = Crc64::default();
        data.chunks(13).for_each(|c| parts.add(c));
        assert_eq!(whole, parts);
    }
}
