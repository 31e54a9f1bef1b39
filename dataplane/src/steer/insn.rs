//! A small assembler for eBPF: instructions with labels, encoded for `bpf(2)`.
#![forbid(unsafe_code)]

/// A register. R0: result, R1-R5: arguments (lost in calls), R6-R9: kept, R10: frame pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R6 = 6,
    R7,
    R9 = 9,
    R10,
}

/// Operand width of a load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// 1 octet.
    B,
    /// 2 octets.
    H,
    /// 4 octets.
    W,
}

/// Conditions of a jump, on the low 32 bits, unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum If {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Greater.
    Gt,
}

/// A place in the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Label(usize);

/// A program does not fit: jumps span at most 32,767 instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too many steering rules for one program ({0} instructions)")]
pub struct TooLong(pub usize);

/// A program being written.
#[derive(Debug, Default)]
pub struct Assembler {
    insns: Vec<u64>,
    /// Where each label was placed.
    labels: Vec<Option<usize>>,
    /// Jumps to patch: index of the instruction, label.
    jumps: Vec<(usize, Label)>,
}

const CLASS_LDX_MEM: u8 = 0x61;
const CLASS_ALU: u8 = 0x04;
const CLASS_ALU64: u8 = 0x07;
const CLASS_JMP: u8 = 0x05;
const CLASS_JMP32: u8 = 0x06;

impl Assembler {
    /// Nothing yet.
    pub fn new() -> Assembler {
        Assembler::default()
    }

    fn push(&mut self, opcode: u8, dst: Reg, src: u8, offset: i16, imm: i32) -> &mut Self {
        self.insns.push(
            u64::from(opcode)
                | u64::from(dst as u8 | src << 4) << 8
                | u64::from(offset as u16) << 16
                | u64::from(imm as u32) << 32,
        );
        self
    }

    /// A label to place later.
    pub fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Places `label` here.
    pub fn place(&mut self, label: Label) -> &mut Self {
        self.labels[label.0] = Some(self.insns.len());
        self
    }

    /// Whether any jump goes to `label` so far.
    pub fn is_used(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, target)| *target == label)
    }

    /// `dst = imm`.
    pub fn set(&mut self, dst: Reg, imm: i32) -> &mut Self {
        self.push(0xb0 | CLASS_ALU64, dst, 0, 0, imm)
    }

    /// `dst = src`.
    pub fn copy(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(0xb8 | CLASS_ALU64, dst, src as u8, 0, 0)
    }

    /// `dst += imm`.
    pub fn add(&mut self, dst: Reg, imm: i32) -> &mut Self {
        self.push(CLASS_ALU64, dst, 0, 0, imm)
    }

    /// `dst += src`.
    pub fn add_reg(&mut self, dst: Reg, src: Reg) -> &mut Self {
        self.push(0x08 | CLASS_ALU64, dst, src as u8, 0, 0)
    }

    /// `dst &= imm`, the upper half becoming zero.
    pub fn and(&mut self, dst: Reg, imm: u32) -> &mut Self {
        self.push(0x50 | CLASS_ALU, dst, 0, 0, imm as i32)
    }

    /// `dst <<= bits`.
    pub fn shift_left(&mut self, dst: Reg, bits: i32) -> &mut Self {
        self.push(0x60 | CLASS_ALU64, dst, 0, 0, bits)
    }

    /// The low 16 bits of `dst` from network to host order.
    pub fn network_to_host_16(&mut self, dst: Reg) -> &mut Self {
        self.push(0xdc, dst, 0, 0, 16)
    }

    /// `dst = *(width *)(src + offset)`.
    pub fn load(&mut self, width: Width, dst: Reg, src: Reg, offset: i16) -> &mut Self {
        let size = match width {
            Width::W => 0x00,
            Width::H => 0x08,
            Width::B => 0x10,
        };
        self.push(CLASS_LDX_MEM | size, dst, src as u8, offset, 0)
    }

    /// `dst =` the map behind `fd` (two instructions).
    pub fn load_map(&mut self, dst: Reg, fd: i32) -> &mut Self {
        self.push(0x18, dst, 1, 0, fd);
        self.insns.push(0);
        self
    }

    /// Jumps to `target` if `reg` compares so with `imm`.
    pub fn jump_if(&mut self, condition: If, reg: Reg, imm: u32, target: Label) -> &mut Self {
        let opcode = match condition {
            If::Eq => 0x10,
            If::Gt => 0x20,
            If::Ne => 0x50,
            If::Lt => 0xa0,
        };
        self.jumps.push((self.insns.len(), target));
        self.push(opcode | CLASS_JMP32, reg, 0, 0, imm as i32)
    }

    /// Jumps to `target`.
    pub fn jump(&mut self, target: Label) -> &mut Self {
        self.jumps.push((self.insns.len(), target));
        self.push(CLASS_JMP, Reg::R0, 0, 0, 0)
    }

    /// Calls helper number `helper`.
    pub fn call(&mut self, helper: i32) -> &mut Self {
        self.push(0x85, Reg::R0, 0, 0, helper)
    }

    /// Returns R0.
    pub fn exit(&mut self) -> &mut Self {
        self.push(0x95, Reg::R0, 0, 0, 0)
    }

    /// The encoded program.
    ///
    /// # Errors
    /// [`TooLong`] if a jump reaches too far.
    ///
    /// # Panics
    /// If a label that is jumped to was never placed.
    pub fn finish(mut self) -> Result<Vec<u64>, TooLong> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0].expect("every label is placed");
            let offset = i16::try_from(target as i64 - *at as i64 - 1)
                .map_err(|_| TooLong(self.insns.len()))?;
            self.insns[*at] |= u64::from(offset as u16) << 16;
        }
        Ok(self.insns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut asm = Assembler::new();
        let end = asm.label();
        asm.set(Reg::R0, 2).jump_if(If::Eq, Reg::R0, 7, end).set(Reg::R0, 1);
        asm.place(end).exit();
        let insns = asm.finish().unwrap();
        assert_eq!(insns[0], 0x0000_0002_0000_00b7);
        assert_eq!(insns[1], 0x0000_0007_0001_0016);
        assert_eq!(insns[3], 0x95);
    }

    #[test]
    fn a_program_too_long_for_its_jumps_is_refused() {
        let mut asm = Assembler::new();
        let end = asm.label();
        asm.jump(end);
        for _ in 0..40_000 {
            asm.set(Reg::R0, 0);
        }
        asm.place(end).exit();
        assert_eq!(asm.finish(), Err(TooLong(40_002)));
    }
}
