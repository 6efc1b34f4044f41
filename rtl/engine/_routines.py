# SPDX-License-Identifier: Apache-2.0
"""The micro engine's microcode: ``docs/model.md`` in instructions.

The store begins with three tables of 256 words, then the thread: the context, and for each routine
its address and its arguments, which it takes in the order of its comment.  Addresses of vectors
are of local memory.
"""

import functools

from ._microcode import Microcode, assemble

CHANCES, WEIGHTS, LOGARITHMS, THREAD = 0, 256, 512, 768
"""Words of the store at which its tables begin, and its thread."""
LANES = 8
"""Trits in a word of the store."""

VARIABLES = (
    *("most", "least", "lowest", "sixteen", "fifteen", "octave0", "unit", "thread0"),
    *("position", "current", "sampling", "fresh"),
    *("vector", "count", "scratch", "half", "angles", "group", "peaks", "out", "where", "stride"),
    *("second", "t0", "t1", "t2"),
    *("bit", "trial", "square", "bits", "top", "size", "nm", "ns", "peak", "divisor"),
    *("rm", "rs", "sm", "ss", "fm", "fs", "qm", "qs"),
    *("score_m", "score_s", "mix_m", "mix_s"),
    *("total", "om", "on", "octave", "score", "chance", "best", "answer", "number"),
)

TEXT = f"""
reset:                  ; what is constant, as local memory has no contents before
    ldx  #1024
    mul  #32
    st   fifteen
    mvx
    mul  #2
    st   sixteen
    mul  #4
    sub  #1
    st   most
    mul  #-4
    add  #1
    st   least
    mul  #-32
    st   octave0        ; below every octave
    mul  #254
    st   unit           ; 127 << 16
    mul  #-1024
    mvx
    mul  #64
    st   lowest
    ld   #{THREAD}
    st   thread0
    ld   #-1
    st   position
start:
    ld   restart
    brz  follows
    ld   #-1
    st   position
follows:
    ld   sample
    st   sampling
    ld   token
    st   current
    take
    set  p0, thread0
    ld   position
    add  #1
    st   fresh
    sub  thread         ; the context
    brn  fits
    jmp  start          ; no place for it: dropped
fits:
    ld   fresh
    st   position
next:
    go   thread

ask:                    ; the rest is for tokens that are answered
    ld   sampling
    brz  start
    jmp  next

embed:                  ; words of a row, first word, factor, elements, vector
    ldx  current
    mul  thread
    add  uthread
    set  p1, a
    ld   thread
    st   t0
    set  c0, thread
    set  i0, thread
embed1:
    ldx  byte+
    mul  t0
    st   [i0+] !
    loop c0, embed1
    jmp  next

rotary:                 ; words of a row, first word, vector: cosines and sines of the position
    ld   thread
    st   t0
    set  c0, t0
    ldx  position
    mul  t0
    add  uthread
    set  p1, a
    set  i0, thread
rotary1:
    ld   word+
    st   [i0+]
    loop c0, rotary1
    jmp  next

plain:                  ; as norm, without squares
    call normed
    jmp  norm2
norm:                   ; vector, elements, scratch, first gain, high and low half of eps
    call normed
    set  i0, vector
    set  c0, count
norm1:
    ldx  [i0]
    mac  [i0+]
    loop c0, norm1
norm2:
    call root
    set  i0, vector
    ld   scratch
    st   vector
    set  i1, a
    set  c0, count
norm3:
    ldx  [i0+]
    mul  word+
    rnd  #15
    st   [i1+]
    loop c0, norm3
    call absmax
    set  i0, vector
    set  c0, count
norm4:
    ld   [i0+]
    code
    loop c0, norm4
    ld   peak
    call normal
    ld   ns
    st   t0
    ldx  nm
    mul  sixteen
    ldx  rm
    div  #25
    even
    call normal
    ld   nm
    st   sm !
    ld   ns
    add  #16
    add  t0
    sub  rs
    st   ss !
    jmp  next
normed:
    ld   thread
    st   vector
    ld   thread
    st   count
    ld   thread
    st   scratch
    set  p1, uthread
    ldx  uthread
    mul  sixteen
    add  uthread
    ret

linear:                 ; as project, vector
    call project
    set  i0, thread
linear1:
    ldx  sum
    mul  fm
    rnd  n
    min  most
    max  least
    st   [i0+] !
    loop c0, linear1
    jmp  next

residual:               ; as project, vector that is added to
    call project
    set  i0, thread
residual1:
    ldx  sum
    mul  fm
    rnd  n
    min  most
    max  least !
    add  [i0]
    min  most
    max  least
    st   [i0+]
    loop c0, residual1
    jmp  next

gate:                   ; as project, vector of gates, which becomes the hidden one
    call project
    set  i0, thread
gate1:
    ldx  sum
    mul  fm
    rnd  n
    min  most
    max  least
    st   t0 !
    ld   [i0]
    max  #0
    mvx
    mul  [i0]
    mvx
    mul  t0
    rnd  #26
    min  most
    max  least
    st   [i0+]
    loop c0, gate1
    jmp  next

choose:                 ; first word, words, rows: the first of the largest sums
    set  pw, uthread
    set  ends, #1
    set  words, uthread
    set  c0, thread
    ld   lowest
    st   best
    ld   #0
    st   number
choose1:
    ld   sum !
    sub  best
    sub  #1
    brn  choose2
    add  #1
    add  best
    st   best
    ld   number
    st   answer
choose2:
    ld   number
    add  #1
    st   number
    loop c0, choose1
    ld   answer
    out
    jmp  start

rotate:                 ; half of a head, angles, heads, vector
    ld   thread
    st   half
    ld   thread
    st   angles
    set  c1, thread
    ld   thread
    st   vector
rotate1:
    set  i0, vector
    ld   vector
    add  half
    set  i1, a
    set  i2, angles
    ld   angles
    add  half
    set  i3, a
    set  c0, half
rotate2:
    ldx  [i0]
    mul  [i2]
    ldx  [i1]
    msc  [i3]
    rnd  #15
    min  most
    max  least
    st   t0
    ldx  [i0]
    mul  [i3+]
    ldx  [i1]
    mac  [i2+]
    rnd  #15
    min  most
    max  least
    st   [i1+]
    ld   t0
    st   [i0+]
    loop c0, rotate2
    ld   vector
    add  half
    add  half
    st   vector
    loop c1, rotate1
    jmp  next

queries:                ; heads, elements of a head, vector, peaks
    set  c1, thread
    ld   thread
    st   count
    ld   thread
    st   vector
    set  i1, thread
queries1:
    call absmax
    ld   peak
    st   [i1+] !
    ld   vector
    add  count
    st   vector
    loop c1, queries1
    jmp  next

remember:               ; elements of a head, words of a pair, heads, keys, values,
    ld   thread         ;   first word, words of a slot
    st   count
    ldx  thread
    mul  position
    st   t1
    set  c1, thread
    ld   thread
    st   vector
    ld   thread
    st   second
    ld   uthread
    add  t1
    st   where
    ld   uthread
    st   stride
remember1:
    set  p1, where
    call absmax
    call write
    ld   peak
    st   word+ !
    shr  #16
    st   word+
    ld   vector
    st   t1
    ld   second
    st   vector
    call absmax
    call logarithm
    st   word+
    call write
    ld   peak !
    ld   vector
    add  count
    st   second
    ld   t1
    add  count
    st   vector
    ld   where
    add  stride
    st   where
    loop c1, remember1
    jmp  next
write:
    set  i0, vector
    set  c0, count
write1:
    ld   [i0+]
    st   byte+
    loop c0, write1
    ret
logarithm:              ; a: of the peak, 8 bits of fraction
    ld   peak
    brz  logarithm1
    ld   #9
    st   bits
    ld   #256
    st   top
    ld   peak
    call normal1
    ld   nm
    add  #{LOGARITHMS - 256}
    set  p2, a
    ldx  #256
    ld   #8
    sub  ns
    st   t0
    mul  t0
    add  table
logarithm1:
    ret

scales:                 ; mantissa and shift of scores, of mixing
    ld   uthread
    st   score_m
    ld   thread
    st   score_s
    ld   uthread
    st   mix_m
    ld   thread
    st   mix_s
    jmp  next

attend:                 ; elements of a head, K and V heads, queries to each, queries, peaks, out,
    ld   thread         ;   first word, words of a slot, sums
    st   count
    set  c2, thread
    ld   thread
    st   group
    ld   thread
    st   vector
    ld   thread
    st   peaks
    ld   thread
    st   out
    ld   uthread
    st   where
    ld   uthread
    st   stride
    ld   thread
    st   second
attend1:
    set  c1, group
attend2:
    set  i0, peaks
    ld   [i0]
    call normal
    ld   ns
    st   t0
    ldx  nm
    mul  score_m
    call normal
    ld   nm
    st   qm
    ld   ns
    add  t0
    add  score_s
    st   qs
    set  i1, second
    set  c3, count
    ld   #0
    st   total
attend3:
    st   [i1+]
    loop c3, attend3
    ld   octave0
    st   om
    st   on
    set  p1, where
    ld   position
    add  #1
    set  c0, a
attend4:
    set  i0, vector
    set  c3, count
    ld   #0
attend5:
    ldx  byte+
    mac  [i0+]
    loop c3, attend5
    st   t1
    ld   uword+
    ldx  uword+
    mac  sixteen
    st   t2
    ldx  t1
    mul  t2
    mvx
    mul  qm
    set  n, qs
    rnd  n
    min  most
    max  least
    st   score
    add  #255
    shr  #8
    st   octave
    ldx  octave
    mul  #256
    sub  score          ; what is missing to the octave
    set  p2, a
    ld   octave
    max  om
    st   t1
    sub  om
    set  n, a
    ld   total
    shr  n
    st   total
    ld   t1
    st   om
    sub  octave
    set  n, a
    ld   table
    rnd  n
    add  total
    st   total
    ld   score
    add  uword+         ; the logarithm
    st   score
    add  #255
    shr  #8
    st   octave
    ldx  octave
    mul  #256
    sub  score
    add  #{WEIGHTS}
    set  p2, a
    ld   octave
    max  on
    st   t1
    sub  octave
    set  n, a
    ld   table
    rnd  n
    st   chance
    ld   t1
    sub  on
    set  n, a
    ld   t1
    st   on
    set  i1, second
    set  c3, count
attend6:
    ldx  byte+
    ld   [i1]
    shr  n
    mac  chance
    st   [i1+]
    loop c3, attend6
    loop c0, attend4
    ld   total
    call normal
    ld   ns
    st   t0
    ldx  mix_m
    mul  sixteen
    ldx  nm
    div  #25
    even
    call normal
    ld   ns
    add  #16
    add  mix_s
    sub  t0
    add  om
    sub  on
    set  n, a
    set  i1, second
    set  i2, out
    set  c3, count
attend7:
    ldx  [i1+]
    mul  nm
    rnd  n
    min  most
    max  least
    st   [i2+] !
    loop c3, attend7
    ld   vector
    add  count
    st   vector
    ld   out
    add  count
    st   out
    ld   peaks
    add  #1
    st   peaks
    loop c1, attend2
    ld   where
    add  stride
    st   where
    loop c2, attend1
    jmp  next

project:                ; first word, whether the vector ends, words, rows, mantissa, shift: begins
    set  pw, uthread
    set  ends, thread
    set  words, uthread
    set  c0, thread
    ldx  sm
    mul  uthread
    call normal
    ld   nm
    st   fm
    ld   ns
    add  ss
    add  thread
    st   fs
    set  n, fs
    ret

absmax:                 ; codes of the vector in its place, and its peak
    set  i0, vector
    set  c0, count
    ld   #0
    st   peak
absmax1:
    ld   [i0+]
    abs
    max  peak
    st   peak
    loop c0, absmax1
    max  #1
    st   divisor
    set  i0, vector
    set  c0, count
absmax2:
    ldx  unit
    mul  [i0]
    abs
    ldx  divisor
    div  #9
    even
    mvx
    ld   [i0]
    brn  absmax3
    mul  #1
    st   [i0+] !
    loop c0, absmax2
    ret
absmax3:
    mul  #-1
    st   [i0+] !
    loop c0, absmax2
    ret

root:                   ; a: rm, rs
    mvx
    ld   #0
    st   rs
root1:
    mul  #1
    shr  #32
    brz  root2
    mul  #1
    shr  #2
    mvx
    ld   rs
    sub  #1
    st   rs
    jmp  root1
root2:
    mul  #1
    shr  #30
    brz  root3
    jmp  root4
root3:
    mul  #4
    mvx
    ld   rs
    add  #1
    st   rs
    jmp  root2
root4:
    mul  #1
    add  lowest         ; 32 bits without a sign
    st   square
    ld   #0
    st   rm
    ld   fifteen
    st   bit
root5:
    ld   rm
    add  bit
    st   trial
    ldx  trial
    mul  trial
    add  lowest
    sub  square
    sub  #1
    brn  root6
    jmp  root7
root6:
    ld   trial
    st   rm
root7:
    ld   bit
    shr  #1
    st   bit
    brz  root8
    jmp  root5
root8:
    ret

normal:                 ; a: the nearest scale, nm and ns
    mvx
    ld   #16
    st   bits
    ld   fifteen
    st   top
    mul  #1
normal1:
    brz  normal7
    mvx
    ld   bits
    st   size
normal2:
    set  n, size
    mul  #1
    shr  n
    brz  normal3
    ld   size
    add  #1
    st   size
    jmp  normal2
normal3:
    ld   size
    sub  bits
    brz  normal5
    set  n, a
    mul  #1
    rnd  n
    st   nm
    set  n, bits
    shr  n
    brz  normal4        ; it was not rounded up to a power of two
    ld   top
    st   nm
    ld   size
    add  #1
    st   size
normal4:
    ld   bits
    sub  size
    st   ns
    ret
normal5:
    st   ns
normal6:
    mul  #1
    sub  top
    brn  normal8
    mul  #1
    st   nm
    ret
normal7:
    st   nm
    ld   bits
    st   ns
    ret
normal8:
    mul  #2
    mvx
    ld   ns
    add  #1
    st   ns
    jmp  normal6
"""


@functools.cache
def microcode() -> Microcode:
    """All routines."""
    return assemble(TEXT, VARIABLES)
