// Mixes two pictures in linear light, as `--strength` of the program does: a table from stored values to light, and one
// back, fine enough that a value is off by at most one.

const STEPS = 65535;

const light = Float32Array.from({ length: 256 }, (_, i) => {
  const v = i / 255;
  return STEPS * (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
});

const stored = Uint8Array.from({ length: STEPS + 1 }, (_, i) => {
  const l = i / STEPS;
  return Math.round(255 * (l <= 0.0031308 ? l * 12.92 : 1.055 * l ** (1 / 2.4) - 0.055));
});

/** RGBA bytes of `before` and `after` mixed into `out`; the share of `after` is `strength`. */
export function blend(before, after, strength, out) {
  for (let i = 0; i < out.length; i += 4) {
    for (let c = i; c < i + 3; c++) {
      const b = light[before[c]];
      out[c] = stored[(b + strength * (light[after[c]] - b) + 0.5) | 0];
    }
    out[i + 3] = after[i + 3];
  }
}
