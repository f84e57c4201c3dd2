package org.edgevlm;

import java.util.Calendar;

/** Python's strftime with English names, for the directives that templates use. */
final class ChatClock {
    private static final String[] MONTHS = {
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December"};
    private static final String[] DAYS = {
        "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"};

    private ChatClock() {
    }

    static String format(String pattern, Calendar now) throws EdgeVlmException {
        StringBuilder out = new StringBuilder();
        for (int i = 0; i < pattern.length(); i++) {
            char c = pattern.charAt(i);
            if (c != '%' || i + 1 == pattern.length()) {
                out.append(c);
                continue;
            }
            out.append(directive(pattern.charAt(++i), now));
        }
        return out.toString();
    }

    private static String directive(char directive, Calendar now) throws EdgeVlmException {
        String month = MONTHS[now.get(Calendar.MONTH)];
        String day = DAYS[now.get(Calendar.DAY_OF_WEEK) - Calendar.SUNDAY];
        switch (directive) {
            case 'd':
                return padded(now.get(Calendar.DAY_OF_MONTH), 2);
            case 'm':
                return padded(now.get(Calendar.MONTH) + 1, 2);
            case 'b':
                return month.substring(0, 3);
            case 'B':
                return month;
            case 'Y':
                return padded(now.get(Calendar.YEAR), 4);
            case 'y':
                return padded(now.get(Calendar.YEAR) % 100, 2);
            case 'H':
                return padded(now.get(Calendar.HOUR_OF_DAY), 2);
            case 'M':
                return padded(now.get(Calendar.MINUTE), 2);
            case 'S':
                return padded(now.get(Calendar.SECOND), 2);
            case 'a':
                return day.substring(0, 3);
            case 'A':
                return day;
            case '%':
                return "%";
            default:
                throw ChatProgram.broken("the date directive '%" + directive + "' is not known to this version");
        }
    }

    private static String padded(int number, int width) {
        StringBuilder out = new StringBuilder(String.valueOf(number));
        while (out.length() < width) {
            out.insert(0, '0');
        }
        return out.toString();
    }
}
