import type { ApiError } from '../errors';
import { acceptConfig, bundleText, canonicalText, signedText } from './bundle';

test('writes the example of RFC 8785 as the RFC does', () => {
  const example = {
    numbers: [JSON.parse('333333333.33333329'), 1e30, 4.5, 2e-3, 0.000000000000000000000000001],
    string: '\u20ac$\u000F\u000aA\'\u0042\u0022\u005c\\"/',
    literals: [null, true, false],
  };
  expect(canonicalText(example)).toBe(
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],' +
      '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
  );
});

test('sorts names by their UTF-16 units', () => {
  const names = { '€': 1, '\r': 2, '\ufb33': 3, 1: 4, '😀': 5, '\u0080': 6, ö: 7 };
  expect(Object.keys(JSON.parse(canonicalText(names)))).toEqual([
    '1',
    '\r',
    '\u0080',
    'ö',
    '€',
    '😀',
    '\ufb33',
  ]);
});

test('signs every field but the signature, and sends the configuration as it was signed', () => {
  const bundle = {
    revision: 'a3f1',
    seq: 7,
    issued_at: 0,
    expires_at: 1_500,
    config: canonicalText({ b: [1], a: 'ü' }),
    signature: 'h..s',
  };
  expect(signedText(bundle)).toBe(
    '{"config":{"a":"ü","b":[1]},"expires_at":"1970-01-01T00:00:01.500Z","issued_at":"1970-01-01T00:00:00.000Z",' +
      '"revision":"a3f1","seq":7}',
  );
  expect(bundleText(bundle)).toBe(
    '{"revision":"a3f1","seq":7,"issued_at":"1970-01-01T00:00:00.000Z","expires_at":"1970-01-01T00:00:01.500Z",' +
      '"config":{"a":"ü","b":[1]},"signature":"h..s"}',
  );
});

/** Returns the details of the error that refuses a configuration. */
function problemsOf(config: object): unknown {
  try {
    acceptConfig(config);
  } catch (error) {
    return (error as ApiError).details;
  }
  return undefined;
}

test('names every field that can not be signed', () => {
  const deep = JSON.parse(`${'{"a":'.repeat(64)}{}${'}'.repeat(64)}`);
  expect(problemsOf({ a: { b: [1, 2 ** 53] }, c: 'x\ud800', '\udc00': 1, d: Number.NaN })).toEqual({
    'config.a.b.1': expect.stringContaining('2^53'),
    'config.c': expect.stringContaining('surrogate'),
    'config.\ufffd': expect.stringContaining('surrogate'),
    'config.d': expect.stringContaining('finite'),
  });
  expect(problemsOf(deep)).toEqual({ config: expect.stringContaining('64') });
});

test('names at most 50 problems, by shortened names', () => {
  const problems = problemsOf({ list: Array(1_000).fill(2 ** 60), ['x'.repeat(1_000)]: 2 ** 60 }) as object;
  expect(Object.keys(problems)).toHaveLength(50);
  expect(Object.keys(problemsOf({ ['x'.repeat(1_000)]: 2 ** 60 }) as object)).toEqual([
    `config.${'x'.repeat(193)}`,
  ]);
});

test('accepts one mebibyte and not a byte more', () => {
  const fits = { text: 'ü'.repeat((1_048_576 - '{"text":""}'.length - 1) / 2) };
  expect(Buffer.byteLength(acceptConfig({ ...fits, text: `${fits.text}x` }))).toBe(1_048_576);
  expect(problemsOf({ text: `${fits.text}xx` })).toEqual({ config: expect.stringContaining('1048577') });
});

test('accepts everything else', () => {
  const config = { a: [2 ** 53 - 1, -(2 ** 53 - 1), 0.1, 1e-300], '😀': 'x😀', b: null, c: true, d: {} };
  expect(JSON.parse(acceptConfig(config))).toEqual(config);
});
