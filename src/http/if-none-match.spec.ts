import { namesEntityTag } from './if-none-match';

const ETAG = '"a3f1"';

test.each([
  ['the tag alone', '"a3f1"'],
  ['the tag marked weak', 'W/"a3f1"'],
  ['a list that has it last', '"b", W/"c","a3f1"'],
  ['a list with empty elements and tabs', ' ,\t"b" , ,"a3f1"\t,'],
  ['a list with a comma inside another tag', '"b,c", "a3f1"'],
  ['the tag without quotes', 'a3f1'],
  ['the tag without quotes, with space around', ' a3f1\t'],
  ['anything', '*'],
  ['anything, with space around', ' * '],
])('%s names it', (_, header) => {
  expect(namesEntityTag(header, ETAG)).toBe(true);
});

test.each([
  ['no header', undefined],
  ['an empty header', ''],
  ['another tag', '"a3f2"'],
  ['another tag without quotes', 'a3f2'],
  ['the tag without quotes in a list', 'a3f1, "b"'],
  ['the tag in other case', '"A3F1"'],
  ['a tag that holds it', '"xa3f1"'],
  ['it within a tag with a comma', '"b,a3f1"'],
  ['a weak mark in lower case', 'w/"a3f1"'],
  ['a tag that does not end', '"a3f1'],
  ['the tag and then rubbish', '"a3f1" rubbish'],
  ['rubbish and then the tag', 'rubbish, "a3f1"'],
  ['two tags without a comma', '"a3f1" "b"'],
  ['anything in a list', '*, "a3f1"'],
])('%s does not name it', (_, header) => {
  expect(namesEntityTag(header, ETAG)).toBe(false);
});

test('a long hostile header is read in no time that grows with its square', () => {
  const steps = (header: string) => namesEntityTag(header, ETAG);
  expect(steps(`${' ,'.repeat(500_000)}x`)).toBe(false);
  expect(steps(`${' '.repeat(1_000_000)}x`)).toBe(false);
});
