import fc from 'fast-check';
import { Field, ID, itemCheck, shown, valueCheck } from './item-fields';
import { NAME, type TextRule } from './text';
import { TIMESTAMP } from './timestamps';
import { AgentBody, checkFields, shapeOf } from './validation';

class Part {
  @Field({ type: 'string', minLength: 1, maxLength: 4 })
  name!: string;

  @Field({ type: 'any', asSent: true })
  value!: unknown;
}

class Thing {
  @Field({ type: 'unchecked', shown: { type: Object } })
  spec!: object;

  @Field({ type: 'integer', minimum: -5, maximum: 5 })
  size!: number;

  @Field({ type: 'integer', minimum: 0, maximum: 9, nullable: true })
  limit!: number | null;

  @Field({ type: 'number', optional: true })
  weight?: number | null;

  @Field({ type: 'number', optional: true, minimum: 0, maximum: 2.5 })
  height?: number | null;

  @Field({ type: 'string', optional: true, minLength: 2, maxLength: 4, rule: NAME })
  key?: string | null;

  @Field({ type: 'string', optional: true, maxLength: 8, with: 'key' })
  lock?: string | null;

  @Field({ type: 'string', optional: true, rule: TIMESTAMP })
  at?: string | null;

  @Field({ type: 'choice', optional: true, of: ['a', 'b'] })
  choice?: string | null;

  @Field({ type: 'list', optional: true, items: Part, noun: 'part', maxItems: 2 })
  parts?: Part[] | null;
}

const WITH_A: TextRule = { problem: (text) => (text.includes('a') ? undefined : 'with an a') };

class Body {
  @Field({ type: 'list', items: Thing, noun: 'thing', minItems: 1, maxItems: 3 })
  things!: Thing[];

  @Field({ type: 'list', optional: true, items: ID, noun: 'id', maxItems: 5, uniqueItems: true })
  ids?: number[] | null;

  @Field({
    type: 'map',
    optional: true,
    values: { type: 'integer', minimum: 0 },
    noun: 'number',
    maxProperties: 2,
    names: WITH_A,
  })
  numbers?: Record<string, number> | null;
}

@AgentBody()
class Report extends Body {
  @Field({ type: 'list', optional: true, items: Part, noun: 'part', maxItems: 2, judgedAlone: true })
  alone?: unknown[] | null;
}

class Query {
  @Field({
    type: 'list',
    optional: true,
    items: { type: 'string', rule: WITH_A },
    noun: 'text',
    maxItems: 2,
    inQuery: true,
  })
  text?: string[];
}

const right: Thing = { spec: {}, size: 1, limit: null };
const filled = {
  ...right,
  limit: 9,
  weight: 0.5,
  height: 2.5,
  key: 'key',
  lock: '',
  at: '2026-01-01T00:00:00Z',
  choice: 'b',
  parts: [
    { name: 'a', value: null },
    { name: '\0\u202e', value: [] },
  ],
};
const bare: Record<string, unknown> = {
  ...right,
  ...Object.fromEntries(
    ['weight', 'height', 'key', 'lock', 'at', 'choice', 'parts'].map((name) => [name, null]),
  ),
};
const without = (name: string) => Object.fromEntries(Object.entries(right).filter(([key]) => key !== name));
const problemsOf = (body: object) => ({ ...checkFields(Body, body).problems });
const parse = (json: string) => JSON.parse(json);

describe('a list of items', () => {
  it.each([
    ['what must be there', right],
    ['everything', filled],
    ['null for all that may be left out', bare],
    ['what others check, whatever it is', { ...right, spec: 5 }],
    ['characters beyond U+FFFF, each as one', { ...right, key: '\u{1f600}'.repeat(4) }],
  ])('takes %s', (_what, thing) => {
    const things = [right, thing];
    const { value, problems } = checkFields(Body, { things });
    expect({ ...problems }).toEqual({});
    // As they were sent.
    expect(value.things).toBe(things);
  });

  it.each<[string, unknown, string, string]>([
    ['text', 'x', '', 'must be an object'],
    ['null', null, '', 'must be an object'],
    ['a list', [], '', 'must be an object'],
    ['no size', without('size'), '.size', 'is required'],
    ['null for a size', { ...right, size: null }, '.size', 'is required'],
    ['a text for a size', { ...right, size: '1' }, '.size', 'must be an integer from -5 to 5'],
    ['a part of a size', { ...right, size: 1.5 }, '.size', 'must be an integer from -5 to 5'],
    ['too small a size', { ...right, size: -6 }, '.size', 'must be an integer from -5 to 5'],
    ['too large a size', { ...right, size: 6 }, '.size', 'must be an integer from -5 to 5'],
    ['no limit', without('limit'), '.limit', 'is required'],
    ['a text for a limit', { ...right, limit: '' }, '.limit', 'must be an integer from 0 to 9, or null'],
    ['a text for a weight', { ...right, weight: '1' }, '.weight', 'must be a number'],
    ['a text for a height', { ...right, height: '1' }, '.height', 'must be a number from 0 to 2.5'],
    ['too small a height', { ...right, height: -0.5 }, '.height', 'must be a number from 0 to 2.5'],
    ['too large a height', { ...right, height: 2.75 }, '.height', 'must be a number from 0 to 2.5'],
    ['a height without end', { ...right, height: Infinity }, '.height', 'must be a number from 0 to 2.5'],
    ['a height that is no number', { ...right, height: NaN }, '.height', 'must be a number from 0 to 2.5'],
    ['a number for a key', { ...right, key: 7 }, '.key', 'must be a string'],
    ['too short a key', { ...right, key: 'a' }, '.key', 'must have 2 to 4 characters'],
    [
      'too short a key, of a wide character',
      { ...right, key: '\u{1f600}' },
      '.key',
      'must have 2 to 4 characters',
    ],
    ['too long a key', { ...right, key: 'abcde' }, '.key', 'must have 2 to 4 characters'],
    [
      'too long a key, of wide characters',
      { ...right, key: '\u{1f600}'.repeat(5) },
      '.key',
      'must have 2 to 4 characters',
    ],
    ['a key that is no name', { ...right, key: 'a ' }, '.key', 'must not begin or end with a space'],
    [
      'too long a lock',
      { ...right, key: 'ab', lock: '123456789' },
      '.lock',
      'must have at most 8 characters',
    ],
    ['a lock without a key', { ...right, lock: 'a' }, '.lock', 'must come with a key'],
    ['a lock with null for a key', { ...right, lock: 'a', key: null }, '.lock', 'must come with a key'],
    [
      'no instant',
      { ...right, at: '2026-02-30T00:00:00Z' },
      '.at',
      'must be an RFC 3339 timestamp such as 2026-01-01T00:00:00Z',
    ],
    ['another choice', { ...right, choice: 'c' }, '.choice', 'must be one of a, b'],
    ['no choice at all', { ...right, choice: {} }, '.choice', 'must be one of a, b'],
    ['parts that are no list', { ...right, parts: {} }, '.parts', 'must be a list of at most 2 parts'],
    ['too many parts', { ...right, parts: [1, 2, 3] }, '.parts', 'must be a list of at most 2 parts'],
    ['a part without a name', { ...right, parts: [{ value: 1 }] }, '.parts.0.name', 'is required'],
    [
      'a part without a value',
      { ...right, parts: [filled.parts[0], { name: 'a' }] },
      '.parts.1.value',
      'is required',
    ],
    ['an unknown field', { ...right, more: 1 }, '.more', 'is not a field of a thing'],
    [
      'an unknown field of a part',
      { ...right, parts: [{ ...filled.parts[0], a: 1 }] },
      '.parts.0.a',
      'is not a field of a part',
    ],
    [
      'an unknown field that every object has',
      { ...right, constructor: 1 },
      '.constructor',
      'is not a field of a thing',
    ],
    [
      'a prototype',
      parse('{"size":1,"limit":null,"__proto__":{}}'),
      '.__proto__',
      'is not a field of a thing',
    ],
    [
      'an unknown field with a path in it',
      { ...right, 'a/b~c.d': 1 },
      '.a/b~c.d',
      'is not a field of a thing',
    ],
  ])('refuses %s', (_what, thing, field, message) => {
    expect(problemsOf({ things: [right, thing, {}] })).toEqual({ [`things.1${field}`]: message });
  });

  it.each<[string, unknown, string]>([
    ['nothing', undefined, 'is required'],
    ['null', null, 'is required'],
    ['a text', 'x', 'must be a list of 1 to 3 things'],
    ['none', [], 'must be a list of 1 to 3 things'],
    ['too many', Array(4).fill(right), 'must be a list of 1 to 3 things'],
  ])('is refused for %s', (_what, things, message) => {
    expect(problemsOf({ things })).toEqual({ things: message });
  });

  it('is right or wrong as its declaration says, whatever is in it', () => {
    const isText = (value: unknown, least: number, most: number) =>
      typeof value === 'string' && [...value].length >= least && [...value].length <= most;
    const isOneOf: Record<string, (value: unknown) => boolean> = {
      size: (value) => Number.isInteger(value) && Math.abs(value as number) <= 5,
      limit: (value) =>
        value === null || (Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 9),
      weight: (value) => value == null || Number.isFinite(value),
      height: (value) =>
        value == null || (Number.isFinite(value) && (value as number) >= 0 && (value as number) <= 2.5),
      key: (value) => value == null || (isText(value, 2, 4) && NAME.problem(value as string) === undefined),
      choice: (value) => value == null || value === 'a' || value === 'b',
    };
    const anything = fc.oneof(
      fc.constantFrom<unknown>(
        null,
        '',
        'a',
        'b',
        'abc',
        'abcde',
        ' ab',
        'a\0',
        '\u{1f600}',
        '\u{1f600}\u{1f600}',
      ),
      fc.constantFrom<unknown>(0, -0, 1, -6, 5, 6, 9, 10, 1.5, true, [], {}),
      fc.jsonValue({ maxDepth: 1 }),
    );
    const name = fc.constantFrom(...Object.keys(isOneOf));
    fc.assert(
      fc.property(name, anything, (field, value) => {
        const found = problemsOf({ things: [{ ...right, [field]: value }] });
        expect([field, value, Object.keys(found)]).toEqual([
          field,
          value,
          isOneOf[field]?.(value) ? [] : [`things.0.${field}`],
        ]);
      }),
      { numRuns: 2_000 },
    );
  });
});

describe('a list of values', () => {
  it.each<[unknown, string, string]>([
    [{}, 'ids', 'must be a list of at most 5 ids'],
    [[1, 2, 3, 4, 5, 6], 'ids', 'must be a list of at most 5 ids'],
    [[1, 0], 'ids.1', 'must be an integer from 1 to 9007199254740991'],
    [[2 ** 53], 'ids.0', 'must be an integer from 1 to 9007199254740991'],
    [[1, null], 'ids.1', 'must be an integer from 1 to 9007199254740991'],
    [['1'], 'ids.0', 'must be an integer from 1 to 9007199254740991'],
    [[1, 2, 1], 'ids.2', 'is in the list already'],
  ])('refuses %j', (ids, field, message) => {
    expect(problemsOf({ things: [right], ids })).toEqual({ [field]: message });
  });

  it('is reported beside the other fields of the body', () => {
    expect(problemsOf({ things: [], ids: [0], numbers: 5 })).toEqual({
      things: 'must be a list of 1 to 3 things',
      'ids.0': 'must be an integer from 1 to 9007199254740991',
      numbers: 'must be an object',
    });
  });
});

describe('a parameter of a query', () => {
  it.each<[unknown, object]>([
    [undefined, {}],
    [['a', 'ba'], {}],
    [['a', 'b'], { text: 'with an a' }],
    [['a', 1], { text: 'must be a string' }],
    [['a', 'a', 'a'], { text: 'must be a list of at most 2 texts' }],
  ])('%j is named without an index', (text, problems) => {
    expect({ ...checkFields(Query, { text }).problems }).toEqual(problems);
  });
});

describe('a map', () => {
  it.each<[unknown, string, string]>([
    [[], 'numbers', 'must be an object'],
    ['a', 'numbers', 'must be an object'],
    [{ a: 1, ab: 2, abc: 3 }, 'numbers', 'must hold at most 2 numbers'],
    [{ b: 1 }, 'numbers', 'must have names with an a'],
    [{ a: -1 }, 'numbers.a', 'must be an integer of at least 0'],
    [{ a: 2 ** 53 }, 'numbers.a', 'must be an integer of at least 0'],
    [{ 'a/b~c': null }, 'numbers.a/b~c', 'must be an integer of at least 0'],
  ])('refuses %j', (numbers, field, message) => {
    expect(problemsOf({ things: [right], numbers })).toEqual({ [field]: message });
  });

  it('takes a member of any name, those that every object has included', () => {
    const check = valueCheck({ type: 'map', values: { type: 'integer', minimum: 1 }, noun: 'number' });
    expect(check(parse('{"__proto__":1,"constructor":2}'))).toBeUndefined();
    expect(check(parse('{"__proto__":0}'))).toEqual(['__proto__', 'must be an integer of at least 1']);
  });
});

describe("an agent's body", () => {
  it('may have fields in its items that are not known', () => {
    const things = [{ ...right, more: 1, parts: [{ name: 'a', value: 1, more: 1 }] }];
    expect({ ...checkFields(Report, { things, more: 1 }).problems }).toEqual({});
  });

  it('leaves alone the items that are judged alone', () => {
    const things = [right];
    expect({ ...checkFields(Report, { things, alone: [5, {}] }).problems }).toEqual({});
    expect({ ...checkFields(Report, { things, alone: [5, {}, 5] }).problems }).toEqual({
      alone: 'must be a list of at most 2 parts',
    });
    const check = itemCheck(Part);
    expect(check({ name: 'a', value: null, more: 1 })).toBeUndefined();
    expect(check({ name: 'a' })).toEqual(['value', 'is required']);
    expect(check(5)).toEqual(['', 'must be an object']);
  });

  it('is read as far as its fields are declared', () => {
    const parts = { members: { name: {}, value: { asSent: true } } };
    const thing = {
      spec: {},
      size: {},
      limit: {},
      weight: {},
      height: {},
      key: {},
      lock: {},
      at: {},
      choice: {},
      parts,
    };
    expect(shapeOf(Report)).toEqual({
      things: { members: thing },
      ids: {},
      numbers: {},
      alone: { ...parts, judgedAlone: 2 },
    });
    expect(shapeOf(Body)).toBeUndefined();
  });
});

describe('the document', () => {
  it.each([
    [
      { type: 'integer', minimum: 1, optional: true, default: 2, example: 3 } as const,
      { type: 'integer', minimum: 1, required: false, nullable: true, default: 2, example: 3 },
    ],
    [{ type: 'number', nullable: true } as const, { type: 'number', format: 'double', nullable: true }],
    [
      { type: 'number', minimum: 0, maximum: 2.5 } as const,
      { type: 'number', format: 'double', minimum: 0, maximum: 2.5 },
    ],
    [{ type: 'string', rule: TIMESTAMP } as const, { type: 'string', format: 'date-time' }],
    [
      { type: 'choice', of: ['a'], optional: true } as const,
      { enum: ['a', null], required: false, nullable: true },
    ],
    [
      { type: 'list', items: ID, noun: 'id', maxItems: 5, uniqueItems: true } as const,
      { type: 'array', items: ID, maxItems: 5, uniqueItems: true },
    ],
    [
      {
        type: 'map',
        values: { type: 'string', maxLength: 2 },
        noun: 'text',
        maxProperties: 3,
        optional: true,
      } as const,
      {
        type: 'object',
        additionalProperties: { type: 'string', maxLength: 2 },
        maxProperties: 3,
        selfRequired: false,
        nullable: true,
      },
    ],
  ])('shows what is checked: %j', (form, schema) => {
    expect(shown(form)).toEqual(schema);
  });
});
