import { isName, NAME_PATTERN, nameProblem } from './text';

const pattern = new RegExp(NAME_PATTERN, 'u');

const WRONG = {
  'a null character': 'a\0b',
  'a line feed': 'a\nb',
  'a control character of C1': 'a\u009bb',
  'a line separator': 'a\u2028b',
  'the upper half of a pair alone': 'a\ud800b',
  'the lower half of a pair alone': 'a\udc00',
  'an override of the direction': 'a\u202eb',
  'an isolate of a direction': 'a\u2066b',
  'a mark of a direction': '\u200ea',
  'a zero-width space': 'a\u200bb',
  'a zero-width joiner': 'a\u200db',
  'a byte order mark': '\ufeffa',
  'a soft hyphen': 'a\u00adb',
  'a tag': 'a\u{e0041}',
  'a space before': ' a',
  'a space behind': 'a ',
  'a no-break space behind': 'a\u00a0',
  'only a space': ' ',
};

describe('a name', () => {
  it.each(Object.entries(WRONG))('does not hold %s', (_, text) => {
    expect([isName(text), pattern.test(text)]).toEqual([false, false]);
    expect(nameProblem(text)).toMatch(/^must not /);
  });

  it.each(['a', 'probes in Frankfurt', 'ä', 'пробник', '探针', '👋', 'a\u0301', 'x'.repeat(100_000), ''])(
    'may be %.20s',
    (text) => {
      expect([isName(text), pattern.test(text)]).toEqual([true, true]);
    },
  );
});
