//! What this room does as others see it: against bytes that stock `rbd` wrote.

mod golden;
