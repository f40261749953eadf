import fc from 'fast-check';
import {
  type BodyShape,
  countValues,
  faultOf,
  MAX_DEPTH,
  MAX_NAMES,
  MAX_VALUES,
  parseJsonBody,
  textOfMember,
} from './json-body';

// biome-ignore lint/suspicious/noExplicitAny: a body can be anything.
const parse = (text: string, shape?: BodyShape): any => parseJsonBody(Buffer.from(text), shape);
const KEPT: BodyShape = {
  list: { judgedAlone: 10, members: { values: { members: { value: { asSent: true }, other: {} } } } },
};
const problems = (text: string, shape?: BodyShape): unknown => {
  try {
    return parse(text, shape);
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
const stringsIn = (text: string) => text.match(/"(?:[^"\\]|\\.)*"/g)?.map((string) => JSON.parse(string));
/** The numbers as they stand in a text, outside its strings. */
const numbersIn = (text: string) => text.replace(/"(?:[^"\\]|\\.)*"/g, '').match(/-?\d[\d.eE+-]*/g);

describe('a JSON body', () => {
  it('is what JSON.parse makes of it, and its items can be written as they were', () => {
    fc.assert(
      fc.property(written, (text) => {
        expect(parse(text)).toEqual(JSON.parse(text));
        const [item] = parse(`{"list":[{"values":[{"value":${text}}]}]}`, KEPT).list;
        expect(faultOf(item)).toBeUndefined();
        const again = textOfMember(item.values[0], 'value');
        expect(JSON.parse(again)).toEqual(JSON.parse(text));
        expect(again.isWellFormed() && !again.includes('\0')).toBe(true);
        expect(numbersIn(again)).toEqual(numbersIn(text));
        expect(JSON.stringify(stringsIn(again))).toBe(JSON.stringify(stringsIn(text)));
      }),
      { numRuns: 1_000 },
    );
  });

  it('keeps the text of that member alone which the rule names, in the order of its names', () => {
    const text =
      '{"list":[{"values":[{"value":{"b": 1.50, "5": "\\u0041"},"other":-0.0},{"value":{"b":0,"\\u0035":[]}}],' +
      '"value":-0.0}],"value":-0.0}';
    const body = parse(text, KEPT);
    const [item] = body.list;
    expect(textOfMember(item.values[0], 'value')).toBe('{"b":1.50,"5":"A"}');
    expect(textOfMember(item.values[0], 'other')).toBe('0');
    expect(textOfMember(item.values[1], 'value')).toBe('{"b":0,"5":[]}');
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
    const shape: BodyShape = { list: { judgedAlone: 4 } };
    const body = parse('{"list":[{"a":1,"a":2},{"b":[1e999,{"c":1,"c":1}]},{"d":1},1e999]}', shape);
    expect(body.list.slice(0, 3).map(faultOf)).toEqual([
      { 'list.0.a': 'must not be there twice' },
      { 'list.1.b.0': 'must be a number that can be represented' },
      undefined,
    ]);
    expect(problems('{"list":[{"a":1,"a":2}]}')).toEqual({ 'list.0.a': 'must not be there twice' });
    expect(() => parse('{"list":{"0":{"a":1,"a":2}}}', shape)).toThrow('not valid');
    expect(() => parse('{"list":[],"list":[]}', shape)).toThrow('not valid');
    // The field's own check refuses the list; its items are not gone through.
    expect(faultOf(parse(`{"list":[${'{"a":1e999},'.repeat(4)}0]}`, shape).list[0])).toBeUndefined();
  });

  it('may hold anything in members that are not read, at any depth', () => {
    const shape: BodyShape = {
      a: {},
      list: { judgedAlone: 10, members: { id: {}, of: { members: { b: {} } } } },
    };
    const wrong = [
      '1e999',
      '{"c":1,"c":2}',
      `${'['.repeat(100)}${']'.repeat(100)}`,
      '"\\",[{"',
      'false',
      '-1.5e-3',
    ].map((value) => (value.startsWith('"') ? JSON.stringify(value) : value));
    for (const value of wrong) {
      const text = `{"x": ${value} ,"a":1,"x":${value},"list":[{"y":${value},"of":[{"z":${value},"b":2}],"id":3,"y":0}]}`;
      expect(problems(text, shape)).toEqual(JSON.parse(text));
      expect(faultOf(parse(text, shape).list[0])).toBeUndefined();
    }
    const twice = (text: string) => faultOf(parse(`{"list":[${text}]}`, shape).list[0]);
    expect(twice('{"x":1,"x":2,"id":1,"id":1}')).toEqual({ 'list.0.id': 'must not be there twice' });
    expect(twice('{"of":[{"b":[{"c":[1,{},"c"],"c":2}]}]}')).toEqual({
      'list.0.of.0.b.0.c': 'must not be there twice',
    });
    expect(problems('{"x":1,"a":1,"x":{},"a":{}}', shape)).toEqual({ a: 'must not be there twice' });
  });

  it('is refused for more values than it may hold, before it is parsed', () => {
    const most = `[${'0,'.repeat(MAX_VALUES - 2)}0]`;
    expect(countValues(Buffer.from(most))).toBe(MAX_VALUES);
    for (const more of [`[[${most}]`, `{"a":${most}`, `${most},`])
      expect(() => countValues(Buffer.from(more))).toThrow('not valid');
    expect(countValues(Buffer.from('["\\\\","a,[{\\",{",{"b":[]}]'))).toBe(6);
    const named = (names: number) =>
      Buffer.from(`[${Array.from({ length: names }, (_, i) => `{"n${i}" :${i}}`)}]`);
    expect(countValues(named(MAX_NAMES))).toBe(2 * MAX_NAMES + 1);
    expect(() => countValues(named(1.5 * MAX_NAMES))).toThrow('not valid');
    expect(() => countValues(Buffer.from(`[${'{"80":0},'.repeat(MAX_NAMES + 1)}0]`))).toThrow('not valid');
    expect(countValues(Buffer.from(`[${'{"a":"b"},'.repeat(2 * MAX_NAMES)}0]`))).toBe(4 * MAX_NAMES + 2);
    expect([countValues(Buffer.from('"\\')), countValues(Buffer.from('",,'))]).toEqual([1, 1]);
  });
});
