# A guest of 64 KiB that is its own firmware (`-bios rom.bin`): up in under a tenth of a second, on pc, q35 and microvm.
#
# It prints "qsup rom guest, boot N" on COM1 (N counts resets: memory outlives one), then "ready", and sleeps
# until something happens, using no CPU time. The ACPI power button powers it off. What is typed on
# COM1 is echoed, but for the capital letters that are commands:
#
#   R  reset                       O  power off (ACPI S5)        P  panic (pvpanic, where there is one)
#   T  triple fault                H  hang, deaf to everything   D  deaf to the power button from now on
#   S  spin on one CPU             F  flood COM1 without end     B  let the watchdog expire (ib700, where there is one)
#   W  write 64 pages of 4 KiB to the first IDE disk (on pc), behind those written before, then say "written"
#
# An NMI prints "nmi". References: Intel SDM 3A 20.1 (real mode), 8259A and 16550 data sheets, ACPI 4.8.3 (PM1).

        .code16
        .text
        .globl  _start

        .set    COM1, 0x3f8
        .set    APIC, 0xfee00000
        .set    GED, 0xfea00200                 # microvm's generic event device, nothing elsewhere
        .set    PM_BASE, 0x600                  # where SeaBIOS puts it, too
        .set    PM1_STATUS, PM_BASE
        .set    PM1_ENABLE, PM_BASE + 2
        .set    PM1_CONTROL, PM_BASE + 4
        .set    POWER_BUTTON, 0x100             # in both PM1 registers
        .set    PVPANIC, 0x505
        .set    BOOT_COUNT, 0x500               # first byte of memory that real mode leaves free
        .set    MAGIC, 0x5175
        .set    NEXT_SECTOR, 0x504
        .set    DISK_DONE, 0x506
        .set    IB700, 0x443
        .set    IDE, 0x1f0

        .macro  out8 port, value
        movw    $\port, %dx
        movb    $\value, %al
        outb    %al, %dx
        .endm

        .macro  out16 port, value
        movw    $\port, %dx
        movw    $\value, %ax
        outw    %ax, %dx
        .endm

        # write one byte of PCI configuration space: device.function and register as in an 0xcf8 address
        .macro  pci8 address, value
        movl    $0x80000000 + (\address & ~3), %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        out8    0xcfc + (\address & 3), \value
        .endm

        .macro  vector number, handler
        movw    $\handler, 4 * \number
        .endm

        .macro  print text
        movw    $\text, %si
        call    print_string
        .endm

_start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7000, %sp

        # every interrupt vector to a handler in this segment
        xorw    %di, %di
        movw    $256, %cx
1:      movw    $stray, %ax
        stosw
        movw    $0xf000, %ax
        stosw
        loop    1b
        vector  2, on_nmi
        vector  0x24, on_serial                 # IRQ 4
        vector  0x29, on_power_button           # IRQ 9
        vector  0x2e, on_disk                   # IRQ 14

        # both interrupt controllers: vectors from 0x20, the serial line, the cascade, SCI and disk let through
        out8    0x20, 0x11
        out8    0xa0, 0x11
        out8    0x21, 0x20
        out8    0xa1, 0x28
        out8    0x21, 0x04
        out8    0xa1, 0x02
        out8    0x21, 0x01
        out8    0xa1, 0x01
        out8    0x21, 0xeb
        out8    0xa1, 0xbd

        # the local APIC lets nothing through after a reset: INTR to the interrupt controllers above, NMI as such.
        # It lies beyond real mode's 64 KiB: a flat segment limit, loaded in protected mode, outlives the way back.
        lgdtl   %cs:flat_table
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $8, %bx
        movw    %bx, %ds
        andb    $0xfe, %al
        movl    %eax, %cr0
        xorw    %bx, %bx
        movw    %bx, %ds
        movl    $APIC, %ebx
        movl    $0x1ff, 0xf0(%ebx)              # spurious vector register: on
        movl    $0x700, 0x350(%ebx)             # LINT0: ExtINT
        movl    $0x400, 0x360(%ebx)             # LINT1: NMI

        # power management: ICH9 (q35) at 1f.0, else PIIX4 (pc) at 01.3; a machine without PCI ignores both
        movl    $0x80000000, %eax
        movw    $0xcf8, %dx
        outl    %eax, %dx
        movw    $0xcfc, %dx
        inl     %dx, %eax
        cmpl    $0x29c08086, %eax
        jne     piix
        pci8    0xf840, 0x01
        pci8    0xf841, PM_BASE >> 8
        pci8    0xf844, 0x80
        jmp     powered
piix:   pci8    0x0b40, 0x01
        pci8    0x0b41, PM_BASE >> 8
        pci8    0x0b80, 0x01
powered:
        out16   PM1_STATUS, POWER_BUTTON
        out16   PM1_ENABLE, POWER_BUTTON
        out16   PM1_CONTROL, 1                  # SCI_EN: events interrupt

        # 115200 8N1, an interrupt for each byte that comes
        out8    COM1+3, 0x80
        out8    COM1+0, 1
        out8    COM1+1, 0
        out8    COM1+3, 3
        out8    COM1+4, 0x0b
        out8    COM1+1, 1

        cmpw    $MAGIC, BOOT_COUNT + 2
        je      1f
        movw    $MAGIC, BOOT_COUNT + 2
        movw    $0, BOOT_COUNT
        movw    $0, NEXT_SECTOR
1:      incw    BOOT_COUNT
        print   hello
        movw    BOOT_COUNT, %ax
        call    print_number
        print   ready

idle:   sti
        hlt
        jmp     idle

# interrupts

stray:  iret

on_nmi:
        pushaw
        print   nmi
        popaw
        iret

on_serial:
        pushaw
1:      movw    $COM1+5, %dx
        inb     %dx, %al
        testb   $1, %al
        jz      2f
        movw    $COM1, %dx
        inb     %dx, %al
        call    command
        jmp     1b
2:      out8    0x20, 0x20
        popaw
        iret

on_disk:
        pushaw
        movw    $IDE+7, %dx                     # reading the status takes the request back
        inb     %dx, %al
        movb    $1, DISK_DONE
        out8    0xa0, 0x20
        out8    0x20, 0x20
        popaw
        iret

on_power_button:
        pushaw
        out16   PM1_STATUS, POWER_BUTTON
        print   button
        jmp     power_off

# commands: a byte in %al

command:
        movw    $commands, %bx
1:      cmpb    $0, %cs:(%bx)
        je      put_char
        cmpb    %al, %cs:(%bx)
        je      2f
        addw    $3, %bx
        jmp     1b
2:      call    put_char
        jmp     *%cs:1(%bx)

reset:
        out8    0xcf9, 2
        out8    0xcf9, 6
        movl    $GED, %ebx
        movb    $0x42, 2(%ebx)                  # reset register
        xorw    %cx, %cx                        # long enough for a machine that has either
1:      inb     $0x80, %al
        loop    1b
triple_fault:
        lidt    %cs:no_vectors
        int3

power_off:
        out16   PM1_CONTROL, 0x2000             # SLP_EN, SLP_TYP 0
        movl    $GED, %ebx
        movb    $0x34, (%ebx)                   # sleep control: SLP_EN, SLP_TYP 5
hang:
        cli
        hlt
        jmp     hang

panic:
        out8    PVPANIC, 1
        ret

deaf:
        out16   PM1_ENABLE, 0
        ret

spin:
        cli
        jmp     spin

flood:
        cli
        print   hello
        jmp     flood

bark:
        out8    IB700, 15                       # the shortest of its times: none
        ret

write:                                          # ATA, WRITE SECTORS by programmed I/O: one sector of each page
        movw    $64, %bx
1:      out8    IDE+6, 0xe0                     # LBA, the first drive
        out8    IDE+2, 1
        movw    NEXT_SECTOR, %ax
        movw    $IDE+3, %dx
        outb    %al, %dx
        movb    %ah, %al
        incw    %dx
        outb    %al, %dx
        out8    IDE+5, 0
        out8    IDE+7, 0x30
2:      inb     %dx, %al
        testb   $0x01, %al                      # ERR
        jnz     4f
        testb   $0x08, %al                      # DRQ
        jz      2b
        movw    $256, %cx
        xorw    %si, %si
        movw    $IDE, %dx
        movb    $0, DISK_DONE
        rep outsw
        sti                                     # QEMU clears BSY, and does not interrupt, before it pauses for an error
3:      cmpb    $0, DISK_DONE
        je      3b
        cli
        movw    $IDE+7, %dx
        inb     %dx, %al
        testb   $0x01, %al
        jnz     4f
        addw    $8, NEXT_SECTOR
        decw    %bx
        jnz     1b
        print   written
        ret
4:      print   failed
        ret

# output

put_char:                                       # %al; keeps %ax
        movb    %al, %ah
        movw    $COM1+5, %dx
1:      inb     %dx, %al
        testb   $0x20, %al
        jz      1b
        movb    %ah, %al
        movw    $COM1, %dx
        outb    %al, %dx
        ret

print_string:                                   # %si, ends with 0
        movb    %cs:(%si), %al
        testb   %al, %al
        jz      1f
        call    put_char
        incw    %si
        jmp     print_string
1:      ret

print_number:                                   # %ax, decimal
        movw    $10, %bx
        xorw    %cx, %cx
1:      xorw    %dx, %dx
        divw    %bx
        pushw   %dx
        incw    %cx
        testw   %ax, %ax
        jnz     1b
2:      popw    %ax
        addb    $'0', %al
        call    put_char
        loop    2b
        ret

hello:  .asciz  "qsup rom guest, boot "
ready:  .asciz  "\r\nready\r\n"
nmi:    .asciz  "nmi\r\n"
button: .asciz  "power button\r\n"
written:
        .asciz  "written\r\n"
failed: .asciz  "write failed\r\n"

        .macro  key letter, handler
        .byte   \letter
        .word   \handler
        .endm
commands:
        key     'R', reset
        key     'O', power_off
        key     'P', panic
        key     'T', triple_fault
        key     'H', hang
        key     'D', deaf
        key     'S', spin
        key     'F', flood
        key     'B', bark
        key     'W', write
        .byte   0

flat:   .quad   0
        .quad   0x00cf93000000ffff              # data, base 0, limit 4 GiB
flat_table:
        .word   15
        .long   0xf0000 + flat
no_vectors:
        .word   0
        .long   0

        # the processor starts here, with CS at 0xffff0000: go to the same ROM's image below 1 MiB
        .org    0xfff0
        ljmp    $0xf000, $_start
        .org    0x10000
