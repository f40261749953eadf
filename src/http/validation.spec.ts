import {
  ArrayMaxSize,
  IsIn,
  IsInt,
  IsOptional,
  IsString,
  Matches,
  MaxLength,
  Min,
  validateSync,
} from 'class-validator';
import fc from 'fast-check';
import { checkFields, IsId, Items, MAX_PROBLEMS } from './validation';

class Sample {
  @IsId()
  id!: number;

  @IsOptional()
  @IsString()
  @MaxLength(5)
  @Matches(/^[a-z]*$/)
  name?: string | null;

  @IsOptional()
  @IsInt()
  @Min(3)
  count?: number;

  @IsIn(['a', 'b'])
  choice!: string;

  @Items((value) =>
    Array.isArray(value) && value.every(Number.isInteger) ? undefined : [0, 'must be whole'],
  )
  list!: number[];
}

class WithEach {
  @IsInt({ each: true })
  @ArrayMaxSize(2)
  list!: number[];
}

class WithNames {
  @Items((value) => {
    const wrong = Object.entries(value as object).find(([, member]) => typeof member !== 'number');
    return wrong && [wrong[0], 'must be a number'];
  })
  numbers!: Record<string, number>;
}

const right = { id: 1, name: 'abc', count: 3, choice: 'a', list: [1] };

describe('the fields of a body', () => {
  it('are right or wrong exactly as class-validator says', () => {
    const anything = fc.oneof(
      fc.constantFrom(
        undefined,
        null,
        '',
        'a',
        'abc',
        'ABC',
        'abcdefg',
        0,
        1,
        3,
        -1,
        1.5,
        NaN,
        2 ** 53,
        true,
      ),
      fc.anything({ maxDepth: 1 }),
    );
    const bodies = fc.record(
      { id: anything, name: anything, count: anything, choice: anything, list: anything },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(bodies, fc.subarray(Object.keys(right)), (body, kept) => {
        // Mostly right, so that single wrong fields are met too.
        const mixed = {
          ...body,
          ...Object.fromEntries(kept.map((key) => [key, right[key as keyof typeof right]])),
        };
        const wrong = validateSync(Object.assign(new Sample(), mixed), { forbidUnknownValues: false });
        const { problems } = checkFields(Sample, mixed);
        expect([...new Set(Object.keys(problems).map((field) => field.split('.')[0]))].sort()).toEqual(
          wrong.map(({ property }) => property).sort(),
        );
      }),
      { numRuns: 2_000 },
    );
  });

  it.each([
    [[1, 2], []],
    [[1, 'x'], ['list']],
    [[1, 2, 3], ['list']],
    ['x', ['list']],
  ])('are judged by the library where a decorator is not simple: %j', (list, fields) => {
    expect(Object.keys(checkFields(WithEach, { list }).problems)).toEqual(fields);
  });

  it('name what is unknown, and keep what is known as it is', () => {
    const list = [1];
    const { value, problems } = checkFields(Sample, { ...right, list, more: 1 });
    expect(problems).toEqual({ more: 'is not a field of this request' });
    expect(value).toBeInstanceOf(Sample);
    expect(value.list).toBe(list);
  });

  it.each([
    ['a line break', 'a\nb', 'numbers.a\nb'],
    ['what class-validator replaces in messages', '$property $target', 'numbers.$property $target'],
    ['what can stand in no database', 'a\0\ud800', 'numbers.a\ufffd\ufffd'],
    ['no end', 'a'.repeat(500), `numbers.${'a'.repeat(192)}`],
    ['a pair that the end would cut', `${'a'.repeat(191)}\u{1f600}`, `numbers.${'a'.repeat(191)}\ufffd`],
  ])('name an item by a name with %s', (_what, name, field) => {
    expect(checkFields(WithNames, { numbers: { [name]: 'x' } }).problems).toEqual({
      [field]: 'must be a number',
    });
  });

  it('name what is unknown by a name that any database and parser takes', () => {
    const { problems } = checkFields(Sample, { ...right, 'a\0\ud800': 1, ['b'.repeat(500)]: '\0' });
    expect(problems).toEqual({
      'a\ufffd\ufffd': 'is not a field of this request',
      ['b'.repeat(200)]: 'must not hold the character U+0000',
    });
  });

  it('name a bounded number of unknown fields, whatever they hold', () => {
    const many = Array.from({ length: 200 }, (_, i) => [`field${i}`, i % 2 === 0 ? '\0' : 1]);
    expect(Object.keys(checkFields(Sample, { ...right, ...Object.fromEntries(many) }).problems)).toHaveLength(
      MAX_PROBLEMS,
    );
  });
});
