import { escapeControls, escapeJson, fields, table } from './print';

describe('what is shown of one thing', () => {
  it('stands in lines, what is nested under its name, and lists of things below', () => {
    const thing = {
      id: 1,
      rules: [
        { name: 'first', of: ['a', 'b c'] },
        { name: 'second', of: null },
      ],
      config: { resolvers: [], limits: { dns: 5 }, name: 'a' },
      hops: [{ at: { host: 'x' } }, 'lost'],
      ended_at: null,
    };
    expect(fields(thing).split('\n')).toEqual([
      'id        1',
      'config',
      '  resolvers  []',
      '  limits',
      '    dns  5',
      '  name       a',
      'ended_at  -',
      '',
      'rules',
      'NAME    OF',
      'first   a, "b c"',
      'second  -',
      '',
      'hops',
      '  at',
      '    host  x',
      '',
      '  lost',
    ]);
  });

  it('takes room in proportion to what was observed, whatever its form', () => {
    const wide = Array.from({ length: 2_000 }, (_, i) => ({ [`column${i}`]: i }));
    const long = [
      { value: 'x'.repeat(100_000), unit: 'ms' },
      ...Array.from({ length: 1_000 }, () => ({ value: 1, unit: 'ms' })),
    ];
    expect(fields({ wide }).length).toBeLessThan(100_000);
    expect(fields({ long }).length).toBeLessThan(300_000);
  });

  it('names nothing that a terminal acts on', () => {
    expect(fields({ a: { '\u001b[31m': { '\n': '\u202e' } } })).toBe(
      'a\n  \\u001b[31m\n    \\u000a  \\u202e',
    );
    expect(table([{ a: { '\u001b': ['\u009b'] } }], ['a'])).toBe('A\n\\u001b=\\u009b');
  });
});

describe('what a terminal acts on or does not show', () => {
  /** Every character of these kinds that there is, whatever version of Unicode this Node knows. */
  const hidden = Array.from({ length: 0x110000 }, (_, code) => code)
    .filter((code) => code < 0xd800 || code > 0xdfff)
    .map((code) => String.fromCodePoint(code))
    .filter((character) => /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/u.test(character));

  it.each([
    '\u007f',
    '\u009b',
    '\u00ad',
    '\u034f',
    '\u200b',
    '\u202e',
    '\u2065',
    '\ufeff',
    '\ufff9',
    '\u{e0001}',
  ])('is such a character: %j', (character) => {
    expect(hidden).toContain(character);
  });

  it('is escaped, also what has two units', () => {
    for (const character of hidden)
      expect(escapeControls(`a${character}b`)).toMatch(/^a(\\u[0-9a-f]{4}){1,2}b$/);
    expect(escapeControls('\u{e0041}')).toBe('\\udb40\\udc41');
    expect(escapeControls('é ß 漢 العربية 👍 x')).toBe('é ß 漢 العربية 👍 x');
  });

  it('is escaped in JSON, whose value stays what it is', () => {
    const value = { [`name${hidden.join('')}`]: hidden, plain: 'é 漢 👍' };
    const text = escapeJson(JSON.stringify(value, null, 2));
    expect(JSON.parse(text)).toEqual(value);
    expect(text.replaceAll('\n', '')).not.toMatch(
      /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/u,
    );
  });
});

describe('a nested value in a table', () => {
  it.each([
    [{}, '-'],
    [{ a: 1, b: { c: 'x', d: [] } }, 'a=1 b.c=x b.d=[]'],
    [{ a: '', b: 'x y', 'c d': '"' }, 'a="" b="x y" "c d"="\\""'],
    [['a', 1, null], 'a, 1, null'],
    [[{ a: 1 }, { a: 2 }], '0.a=1 1.a=2'],
    [{ a: 'x'.repeat(58) }, `a=${'x'.repeat(58)}`],
    [{ a: 'x'.repeat(59) }, `a=${'x'.repeat(55)}...`],
    [{ a: '\u{1f600}'.repeat(58) }, `a=${'\u{1f600}'.repeat(58)}`],
    [{ a: '\u{1f600}'.repeat(59) }, `a=${'\u{1f600}'.repeat(55)}...`],
    ['x'.repeat(100), 'x'.repeat(100)],
  ])('is a short line: %j', (value, line) => {
    expect(table([{ value }], ['value'])).toBe(`VALUE\n${line}`);
  });
});
