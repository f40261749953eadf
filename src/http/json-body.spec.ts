import fc from 'fast-check';
import { faultOf, MAX_DEPTH, parseJsonBody, textOfMember } from './json-body';

// biome-ignore lint/suspicious/noExplicitAny: a body can be anything.
const parse = (text: string, lists: string[] = []): any =>
  parseJsonBody(Buffer.from(text), { lists, asSent: ['values', '*', 'value'] });
const problems = (text: string): unknown => {
  try {
    return parse(text);
  } catch (error) {
    return (error as { details: unknown }).details;
  }
};

/** JSON as others may write it: numbers and escapes in every form, space anywhere, any key once in its object. */
const written = fc.letrec<{ value: string; space: string }>((tie) => {
  const text = fc.string({ unit: 'binary', maxLength: 6 }).map((plain) => JSON.stringify(plain));
  const escaped = fc
    .string({ maxLength: 3 })
    .map((plain) => `"${[...plain].map(escapeOf).join('')}\\"\\\\\\ud800"`);
  const number = fc.oneof(
    fc.constantFrom('-0', '-0.0', '0', '1.0', '1e308', '1E+2', '-1.50e-3', '12345678901234567890', '0.1'),
    fc.double({ noNaN: true, noDefaultInfinity: true }).map(String),
    fc.integer().map(String),
  );
  const spaced = (part: fc.Arbitrary<string>) =>
    fc.tuple(tie('space'), part, tie('space')).map((all) => all.join(''));
  const list = fc.array(tie('value'), { maxLength: 4 }).map((items) => `[${items.join(',')}]`);
  const names = fc.uniqueArray(
    fc.oneof(fc.constantFrom('__proto__', 'constructor', 'toJSON', '0', ''), fc.string({ maxLength: 3 })),
    { maxLength: 4 },
  );
  const object = fc
    .tuple(names, fc.array(tie('value'), { minLength: 4, maxLength: 4 }), tie('space'))
    .map(
      ([keys, values, space]) =>
        `{${keys.map((key, i) => `${space}${JSON.stringify(key)}${space}:${values[i]}`)}${space}}`,
    );
  return {
    space: fc.constantFrom('', '', ' ', '\n\t\r '),
    value: spaced(
      fc.oneof(
        { maxDepth: 4 },
        text,
        escaped,
        number,
        fc.constantFrom('true', 'false', 'null'),
        list,
        object,
      ),
    ),
  };
}).value;

const escapeOf = (char: string): string => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
/** The numbers as they stand in a text, outside its strings. */
const numbersIn = (text: string) => text.replace(/"(?:[^"\\]|\\.)*"/g, '').match(/-?\d[\d.eE+-]*/g);

describe('a JSON body', () => {
  it('is what JSON.parse makes of it, and its items can be written as they were', () => {
    fc.assert(
      fc.property(written, (text) => {
        expect(parse(text)).toEqual(JSON.parse(text));
        const [item] = parse(`{"list":[{"values":[{"value":${text}}]}]}`, ['list']).list;
        expect(faultOf(item)).toBeUndefined();
        const again = textOfMember(item.values[0], 'value');
        expect(JSON.parse(again)).toEqual(JSON.parse(text));
        expect(again.isWellFormed() && !again.includes('\0')).toBe(true);
        // Members whose names are integers come first in JavaScript, so the order may be another.
        expect(numbersIn(again)?.sort()).toEqual(numbersIn(text)?.sort());
      }),
      { numRuns: 1_000 },
    );
  });

  it('keeps the text of that member alone which the rule names, in the order of its names', () => {
    const text =
      '{"list":[{"values":[{"value":{"b": 1.50, "5": "\\u0041"},"other":-0.0}],"value":-0.0}],"value":-0.0}';
    const body = parse(text, ['list']);
    const [item] = body.list;
    expect(textOfMember(item.values[0], 'value')).toBe('{"b":1.50,"5":"A"}');
    expect(textOfMember(item.values[0], 'other')).toBe('0');
    expect([item, body].map((holder) => textOfMember(holder, 'value'))).toEqual(['0', '0']);
  });

  it.each([
    ['{"a":1,"b":2,"a":3}', 'a'],
    ['{"a":{"b":[{"c":1,"\\u0063":{}}]}}', 'a.b.0.c'],
    ['{"a":{"x":1},"b":1,"a":[1]}', 'a'],
    ['{"a":[[1]],"a":{"b":{"c":1,"c":2}}}', 'a.b.c'],
    ['{"__proto__":1,"__proto__":2}', '__proto__'],
    ['{"a\\u0000":1,"a\\u0000":2}', 'a\ufffd'],
  ])('is refused for a key that is there twice: %s', (text, field) => {
    expect(problems(text)).toEqual({ [field]: 'must not be there twice' });
  });

  it.each([
    ['1e999', 'body'],
    ['{"a":[0,-1e999]}', 'a.1'],
    [`{"a":1${'0'.repeat(400)}}`, 'a'],
  ])('is refused for a number that overflows: %s', (text, field) => {
    expect(problems(text)).toEqual({ [field]: 'must be a number that can be represented' });
  });

  it('is refused for nesting too deep, however deep', () => {
    const nested = (depth: number) => '[{"a":'.repeat(depth / 2) + 1 + '}]'.repeat(depth / 2);
    expect(parse(nested(MAX_DEPTH))).toEqual(JSON.parse(nested(MAX_DEPTH)));
    for (const depth of [MAX_DEPTH + 2, 200_000])
      expect(problems(nested(depth))).toEqual({ body: `must not nest deeper than ${MAX_DEPTH}` });
  });

  it('keeps what is wrong with an item from the others, and takes lists alone that were named', () => {
    const body = parse('{"list":[{"a":1,"a":2},{"b":[1e999,{"c":1,"c":1}]},{"d":1}]}', ['list']);
    expect(body.list.map(faultOf)).toEqual([
      { 'list.0.a': 'must not be there twice' },
      { 'list.1.b.0': 'must be a number that can be represented' },
      undefined,
    ]);
    expect(problems('{"list":[{"a":1,"a":2}]}')).toEqual({ 'list.0.a': 'must not be there twice' });
    expect(() => parse('{"list":{"0":{"a":1,"a":2}}}', ['list'])).toThrow('not valid');
    expect(() => parse('{"list":[],"list":[]}', ['list'])).toThrow('not valid');
  });
});
